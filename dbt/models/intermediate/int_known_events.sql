-- Every event with the first midnight at which a feature row may use it.

with

events as (
    select * from {{ ref('stg_events') }}
),

items as (
    select * from {{ ref('stg_items') }}
),

dated as (
    select
        *,
        cast(event_at as date) as event_date,
        cast(greatest(event_at, received_at) as date) + 1 as known_on
    from events
),

categorised as (
    select
        dated.event_id,
        dated.user_id,
        dated.item_id,
        items.category,
        dated.event_type,
        dated.session_id,
        dated.event_value,
        dated.quantity,
        dated.event_at,
        dated.event_date,
        dated.known_on
    from dated
    -- The category the item had when the event became known.
    asof left join items
        on
            dated.item_id = items.item_id
            and cast(dated.known_on as timestamp) > items.valid_from
)

select * from categorised
{% if var('as_of_to') %}
    where known_on <= cast('{{ var("as_of_to") }}' as date)
{% endif %}
