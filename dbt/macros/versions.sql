-- A loop of the template is no level of the SQL.
-- noqa: disable=LT02

{% macro known_versions(versions, key, facts) -%}
    {#- Of the versions of something, those that were ever believed, each with its span: `holds_from`, exclusive,
        until `holds_until`, inclusive. A version counts once it is valid and received; one that is older than what is believed by then
        (valid from earlier, or the same moment and received earlier) changes nothing. -#}
    dated as (
        select
            *,
            greatest(valid_from, received_at) as holds_from
        from {{ versions }}
    ),

    ranked as (
        select
            *,
            max(struct_pack(valid_from, received_at)) over (
                partition by {{ key }}
                order by holds_from asc, valid_from asc, received_at asc
                rows between unbounded preceding and current row
            ) as newest
        from dated
    ),

    believed as (
        select *
        from ranked
        where newest = struct_pack(valid_from, received_at)
        qualify row_number() over (partition by {{ key }}, holds_from order by valid_from desc, received_at desc) = 1
    )

    select
        {{ key }},
        {% for fact in facts %}
            {{ fact }},
        {% endfor %}
        holds_from,
        -- The end of time instead of null: a join on a span then streams.
        lead(holds_from, 1, timestamp '9999-12-31 00:00:00') over (partition by {{ key }} order by holds_from) as holds_until
    from believed
{%- endmacro %}
