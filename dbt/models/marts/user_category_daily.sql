with

days as (
    select
        min(as_of_date) as first_on,
        max(as_of_date) as last_on
    from {{ ref('int_days') }}
),

pair_days as (
    select * from {{ ref('int_user_category_days') }}
),

coverage as (
    select * from {{ ref('int_coverage') }}
),

-- An event counts from the day it is known until it is 30 days old: it arrives once and leaves once.
-- Adding arrivals and leavings up, and writing a row for each day in between, is a third of the work
-- of summing 30 days anew for every day.
changes as (
    select
        user_id,
        category,
        known_on as changed_on,
        events,
        purchases,
        last_event_at
    from pair_days
    union all
    select
        user_id,
        category,
        greatest(known_on, event_date + 31) as changed_on,
        -events as events,
        -purchases as purchases,
        null as last_event_at
    from pair_days
),

netted as (
    select
        user_id,
        category,
        changed_on,
        sum(events) as events,
        sum(purchases) as purchases,
        max(last_event_at) as last_event_at
    from changes
    group by all
),

states as (
    select
        user_id,
        category,
        changed_on as holds_from,
        lead(changed_on) over growing - 1 as holds_until,
        cast(sum(events) over growing as integer) as events_30d,
        cast(sum(purchases) over growing as integer) as purchases_30d,
        max(last_event_at) over growing as last_event_at
    from netted
    window growing as (partition by user_id, category order by changed_on)
),

-- A pair that has fallen to zero is written for as many days more as a lookup reaches back (the ttl
-- of the feature view), so that a zero is seen before the pair is gone until the next event.
daily as (
    select
        states.user_id,
        states.category,
        states.events_30d,
        states.purchases_30d,
        states.last_event_at,
        unnest(generate_series(
            greatest(states.holds_from, days.first_on),
            least(states.holds_until, cast(states.last_event_at as date) + 30 + {{ var('ttl_days') }}, days.last_on),
            interval 1 day
        )) as as_of
    from states
    cross join days
),

user_totals as (
    select
        user_id,
        as_of,
        cast(sum(events_30d) as double) as events_30d
    from daily
    group by all
),

final as (
    select
        daily.user_id,
        daily.category,
        cast(daily.as_of as timestamp) as as_of,
        daily.events_30d,
        case when coverage.purchases_known_on <= daily.as_of then daily.purchases_30d end as purchases_30d,
        daily.events_30d / nullif(user_totals.events_30d, 0) as share_of_events_30d,
        {{ days_before('daily.last_event_at', 'daily.as_of') }} as days_since_last_event,
        cast(daily.as_of as timestamp) as available_at
    from daily
    inner join user_totals on daily.user_id = user_totals.user_id and daily.as_of = user_totals.as_of
    cross join coverage
)

select * from final
