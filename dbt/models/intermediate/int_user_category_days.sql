-- What became known about a user's day in one category, by the day it became known.

with

events as (
    select * from {{ ref('int_known_events') }}
),

counted as (
    select
        user_id,
        category,
        event_date,
        known_on,
        cast(count(*) as integer) as events,
        cast(count(*) filter (where event_type = 'purchase') as integer) as purchases,
        max(event_at) as last_event_at
    from events
    where category is not null
    group by all
)

select * from counted
