with

days as (
    select * from {{ ref('int_days') }}
),

pair_days as (
    select * from {{ ref('int_user_category_days') }}
),

coverage as (
    select * from {{ ref('int_coverage') }}
),

-- A pair stays for as long as a feature lookup may reach back, so that it is seen to fall to zero.
windowed as (
    select
        pair_days.user_id,
        pair_days.category,
        days.as_of,
        sum(pair_days.events) filter (where {{ within(30) }}) as events_30d,
        sum(pair_days.purchases) filter (where {{ within(30) }}) as purchases_30d,
        max(pair_days.last_event_at) as last_event_at
    from pair_days
    inner join days on {{ visible('pair_days', 30 + var('ttl_days')) }}
    group by all
),

shared as (
    select
        *,
        sum(events_30d) over (partition by as_of, user_id) as user_events_30d
    from windowed
)

select
    shared.user_id,
    shared.category,
    shared.as_of,
    cast(coalesce(shared.events_30d, 0) as integer) as events_30d,
    case
        when coverage.purchases_known_on <= shared.as_of then cast(coalesce(shared.purchases_30d, 0) as integer)
    end as purchases_30d,
    coalesce(shared.events_30d, 0) / nullif(cast(shared.user_events_30d as double), 0) as share_of_events_30d,
    cast(date_diff('second', shared.last_event_at, shared.as_of) / 86400.0 as double) as days_since_last_event,
    shared.as_of as available_at
from shared
cross join coverage
