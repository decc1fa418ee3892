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
