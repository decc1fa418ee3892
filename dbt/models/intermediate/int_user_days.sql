{{ config(materialized='incremental') }}
-- What became known about a user's day, by the day it became known: sums over these rows count every event once.

with

events as (
    select
        *,
        -- The price of a unit in ten-thousandths: integers, of which squares can be added up exactly.
        case
            when event_type = 'purchase' and event_value >= 0 and event_value < 1000000000 * coalesce(quantity, 1)
                then cast(round(cast(event_value as double) / nullif(cast(coalesce(quantity, 1) as double), 0) * 10000) as hugeint)
        end as unit_price
    from {{ ref('int_known_events') }}
),

session_days as (
    select
        user_id,
        event_date,
        known_on,
        sum(sessions) as sessions,
        sum(events) as session_events,
        sum(session_micros) as session_micros
    from {{ ref('int_session_days') }}
    where {{ arrived() }}
    group by all
),

counted as (
    select
        user_id,
        event_date,
        known_on,
        {{ happened() }},
        cast(count(*) filter (where event_type = 'click') as integer) as clicks,
        cast(count(unit_price) as integer) as prices,
        sum(unit_price) as price_sum,
        sum(unit_price * unit_price) as price_squares,
        cast(count(*) filter (where hour(event_at) < 6) as integer) as night_events,
        cast(count(*) filter (where hour(event_at) between 6 and 11) as integer) as morning_events,
        cast(count(*) filter (where hour(event_at) between 12 and 17) as integer) as afternoon_events,
        cast(count(*) filter (where isodow(event_at) > 5) as integer) as weekend_events,
        cast(count(category) as integer) as category_events,
        cast(count(brand) as integer) as brand_events,
        cast(count(device) as integer) as device_events,
        cast(count(*) filter (where device in ('mobile', 'phone', 'smartphone', 'app', 'android', 'ios')) as integer) as mobile_events,
        cast(count(*) filter (where device = 'tablet') as integer) as tablet_events,
        max(event_at) filter (where event_type = 'add_to_cart') as last_add_to_cart_at
    from events
    where {{ arrived() }}
    group by all
),

told as (
    select
        user_id,
        event_date,
        known_on,
        purchases
    from counted
    {% if carries_on() %}
        union all by name
        {{ known_earlier(['user_id', 'event_date'], ['user_id', 'event_date', 'known_on', 'purchases']) }}
    {% endif %}
),

-- The days on which a user's day first became known as one with an event, and with a purchase.
first_told as (
    select
        user_id,
        event_date,
        min(known_on) as active_on,
        min(known_on) filter (where purchases > 0) as purchase_on
    from told
    group by all
)

select
    counted.*,
    cast(coalesce(session_days.sessions, 0) as integer) as sessions,
    cast(coalesce(session_days.session_events, 0) as integer) as session_events,
    cast(coalesce(session_days.session_micros, 0) as bigint) as session_micros,
    cast(counted.known_on = first_told.active_on as integer) as active_days,
    cast(coalesce(counted.known_on = first_told.purchase_on, false) as integer) as purchase_days
from counted
left join session_days
    on
        counted.user_id = session_days.user_id
        and counted.event_date = session_days.event_date
        and counted.known_on = session_days.known_on
inner join first_told
    on
        counted.user_id = first_told.user_id
        and counted.event_date = first_told.event_date
