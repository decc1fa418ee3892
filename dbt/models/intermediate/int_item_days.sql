-- What became known about an item's day, by the day it became known: sums over these rows count every event once.

with

events as (
    select * from {{ ref('int_known_events') }}
),

counted as (
    select
        item_id,
        event_date,
        known_on,
        cast(count(*) as integer) as events,
        cast(count(*) filter (where event_type = 'view') as integer) as views,
        cast(count(*) filter (where event_type = 'add_to_cart') as integer) as add_to_carts,
        cast(count(*) filter (where event_type = 'purchase') as integer) as purchases,
        cast(count(event_value) filter (where event_type = 'rating') as integer) as ratings,
        sum(event_value) filter (where event_type = 'rating') as rating_sum,
        sum(event_value) filter (where event_type = 'purchase') as revenue,
        sum(coalesce(quantity, 1)) filter (where event_type = 'purchase' and event_value is not null) as units,
        min(event_at) as first_event_at,
        max(event_at) as last_event_at
    from events
    group by all
)

select * from counted
