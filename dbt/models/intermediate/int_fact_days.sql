{{ config(materialized='incremental') }}
-- Which kinds of fact became known on which day: one row per known_on on which anything did.

with

events as (
    select * from {{ ref('int_known_events') }}
),

told as (
    select
        known_on,
        bool_or(event_type = 'view') as views,
        bool_or(event_type = 'click') as clicks,
        bool_or(event_type = 'add_to_cart') as add_to_carts,
        bool_or(event_type = 'purchase') as purchases,
        bool_or(event_type = 'purchase' and event_value is not null) as spend,
        bool_or(event_type = 'rating') as ratings,
        bool_or(session_id is not null) as sessions,
        bool_or(device is not null) as devices,
        bool_or(category is not null) as categories,
        bool_or(brand is not null) as brands
    from events
    where {{ arrived() }}
    group by all
)

select * from told
