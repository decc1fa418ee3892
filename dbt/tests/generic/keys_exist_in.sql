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
                {% for key in keys %}
                    and others.{{ key }} = theirs.{{ key }}
                {% endfor %}
        )
{% endtest %}
