{% test keys_exist_in(model, to, keys) %}
    {#- Every key of the newest day of this run has its row of that day in the other model. -#}
    with

    theirs as (
        select * from {{ model }}
        where {{ built_days() }}
        qualify as_of = max(as_of) over ()
    ),

    others as (
        select * from {{ to }}
        where {{ built_days() }}
    )

    select theirs.*
    from theirs
    anti join others
        on
            theirs.as_of = others.as_of
            {% for key in keys %}
                and theirs.{{ key }} = others.{{ key }}
            {% endfor %}
{% endtest %}
