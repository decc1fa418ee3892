{{ config(materialized='incremental') }}
-- What became known about a session's day, by the day it became known, and how much longer that made it.

with

events as (
    select * from {{ ref('int_known_events') }}
),

counted as (
    select
        user_id,
        session_id,
        event_date,
        known_on,
        cast(count(*) as integer) as events,
        min(event_at) as first_event_at,
        max(event_at) as last_event_at
    from events
    where session_id is not null and {{ arrived() }}
    group by all
),

told as (
    select * from counted
    {% if carries_on() %}
        union all by name
        {{ known_earlier(
            ['user_id', 'session_id', 'event_date'],
            ['user_id', 'session_id', 'event_date', 'known_on', 'events', 'first_event_at', 'last_event_at']
        ) }}
    {% endif %}
),

grown as (
    select
        *,
        date_diff('microsecond', min(first_event_at) over so_far, max(last_event_at) over so_far) as micros_so_far,
        row_number() over so_far = 1 as is_first
    from told
    window so_far as (partition by user_id, session_id, event_date order by known_on)
),

lengthened as (
    select
        user_id,
        session_id,
        event_date,
        known_on,
        events,
        first_event_at,
        last_event_at,
        cast(is_first as integer) as sessions,
        micros_so_far - lag(micros_so_far, 1, 0) over (partition by user_id, session_id, event_date order by known_on) as session_micros
    from grown
)

select * from lengthened
where {{ arrived() }}
