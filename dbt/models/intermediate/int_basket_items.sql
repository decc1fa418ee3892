{{ config(materialized='incremental') }}
-- What a user bought, or viewed, on one day: the first 20 items to become known, so that a list only ever grows.

with

events as (
    select * from {{ ref('int_known_events') }}
),

counted as (
    select
        event_type,
        user_id,
        event_date,
        item_id,
        known_on,
        min(event_at) as first_event_at
    from events
    where event_type in ('view', 'purchase') and {{ arrived() }}
    group by all
),

told as (
    select * from counted
    {% if carries_on() %}
        union all by name
        {{ known_earlier(
            ['event_type', 'user_id', 'event_date'],
            ['event_type', 'user_id', 'event_date', 'item_id', 'known_on', 'first_event_at']
        ) }}
    {% endif %}
),

first_told as (
    select *
    from told
    qualify row_number() over (partition by event_type, user_id, event_date, item_id order by known_on) = 1
),

ranked as (
    select *
    from first_told
    qualify row_number() over (partition by event_type, user_id, event_date order by known_on, first_event_at, item_id) <= 20
)

select * from ranked
where {{ arrived() }}
