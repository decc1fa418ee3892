{% test one_row_per(model, keys) %}
    {#- The grain: no two rows of a day share these keys (compared by their 64-bit hash: millions of rows a run). -#}
    select
        as_of,
        hash({{ keys | join(', ') }}) as keys_hash
    from {{ model }}
    where {{ built_days() }}
    group by all
    having count(*) > 1
{% endtest %}


{% test holds(model, truth) %}
    {#- No row of this run contradicts the truth; a truth that is null for a row says nothing about it. -#}
    select *
    from {{ model }}
    where {{ built_days() }} and not ({{ truth }})
{% endtest %}


{% test keys_exist_in(model, to, keys) %}
    {#- Every key of the newest day has its row of that day in the other model. -#}
    select theirs.*
    from {{ model }} as theirs
    where
        theirs.as_of = (select max(newest.as_of) from {{ model }} as newest)
        and not exists (
            select 1
            from {{ to }} as others
            where
                others.as_of = theirs.as_of
                {% for key in keys %} and others.{{ key }} = theirs.{{ key }} {% endfor %}
        )
{% endtest %}
