-- What became known about a user's day, by the day it became known: sums over these rows count every event once.

with

events as (
    select * from {{ ref('int_known_events') }}
),

counted as (
    select
        user_id,
        event_date,
        known_on,
        cast(count(*) as integer) as events,
        cast(count(*) filter (where event_type = 'view') as integer) as views,
        cast(count(*) filter (where event_type = 'add_to_cart') as integer) as add_to_carts,
        cast(count(*) filter (where event_type = 'purchase') as integer) as purchases,
        cast(count(event_value) filter (where event_type = 'rating') as integer) as ratings,
        sum(event_value) filter (where event_type = 'rating') as rating_sum,
        sum(event_value) filter (where event_type = 'purchase') as spend,
        sum(coalesce(quantity, 1)) filter (where event_type = 'purchase' and event_value is not null) as units,
        min(event_at) as first_event_at,
        max(event_at) as last_event_at,
        max(event_at) filter (where event_type = 'purchase') as last_purchase_at
    from events
    group by all
),

sessions as (
    select
        user_id,
        event_date,
        session_id,
        min(known_on) as known_on
    from events
    where session_id is not null
    group by all
),

sessions_counted as (
    select
        user_id,
        event_date,
        known_on,
        cast(count(*) as integer) as sessions
    from sessions
    group by all
)

select
    counted.*,
    cast(coalesce(sessions_counted.sessions, 0) as integer) as sessions,
    -- 1 on the row through which the day first became known as active.
    cast(counted.known_on = min(counted.known_on) over (partition by counted.user_id, counted.event_date) as integer) as active_days
from counted
left join sessions_counted
    on
        counted.user_id = sessions_counted.user_id
        and counted.event_date = sessions_counted.event_date
        and counted.known_on = sessions_counted.known_on
