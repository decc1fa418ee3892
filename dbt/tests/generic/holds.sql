{% test holds(model, truth) %}
    {#- No row of this run contradicts the truth; a truth that is null for a row says nothing about it. -#}
    select *
    from {{ model }}
    where
        {{ built_days() }}
        and not ({{ truth }})
{% endtest %}
