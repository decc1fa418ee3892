with

days as (
    select * from {{ ref('int_days') }}
),

user_days as (
    select * from {{ ref('int_user_days') }}
),

users as (
    select * from {{ ref('stg_users') }}
),

coverage as (
    select * from {{ ref('int_coverage') }}
),

category_days as (
    select * from {{ ref('user_category_daily') }}
),

windowed as (
    select
        user_days.user_id,
        days.as_of,
        sum(user_days.events) filter (where {{ within(7) }}) as events_7d,
        sum(user_days.events) as events_30d,
        sum(user_days.views) filter (where {{ within(7) }}) as views_7d,
        sum(user_days.views) as views_30d,
        sum(user_days.add_to_carts) as add_to_carts_30d,
        sum(user_days.purchases) filter (where {{ within(7) }}) as purchases_7d,
        sum(user_days.purchases) as purchases_30d,
        sum(user_days.spend) as spend_30d,
        sum(user_days.sessions) as sessions_30d,
        sum(user_days.active_days) as active_days_30d
    from user_days
    inner join days on {{ visible('user_days', 30) }}
    group by all
),

-- The shop's own rate of the day, to which the rates of those with few views are drawn.
shop as (
    select
        as_of,
        cast(sum(purchases_30d) as double) / nullif(sum(views_30d), 0) as conversion_30d
    from windowed
    group by all
),

priced as (
    select
        user_days.user_id,
        days.as_of,
        sum(user_days.spend) / nullif(sum(user_days.units), 0) as mean_purchase_price_90d
    from user_days
    inner join days on {{ visible('user_days', 90) }}
    where user_days.spend is not null
    group by all
),

categorised as (
    select
        category_days.user_id,
        category_days.as_of,
        count(*) as distinct_categories_30d,
        max(category_days.share_of_events_30d) as top_category_share_30d
    from category_days
    inner join days on category_days.as_of = days.as_of
    where category_days.events_30d > 0
    group by all
),

-- What a user's whole past amounts to, as it grew from one day to the next.
learnt as (
    select
        user_id,
        known_on,
        sum(purchases) as purchases,
        sum(ratings) as ratings,
        sum(rating_sum) as rating_sum,
        min(first_event_at) as first_event_at,
        max(last_event_at) as last_event_at,
        max(last_purchase_at) as last_purchase_at
    from user_days
    group by all
),

lifetime as (
    select
        user_id,
        known_on,
        sum(purchases) over growing as purchases_lifetime,
        sum(ratings) over growing as ratings_lifetime,
        sum(rating_sum) over growing as rating_sum_lifetime,
        min(first_event_at) over growing as first_event_at,
        max(last_event_at) over growing as last_event_at,
        max(last_purchase_at) over growing as last_purchase_at
    from learnt
    window growing as (partition by user_id order by known_on)
),

seen as (
    select
        user_id,
        cast(known_on as timestamp) as seen_at
    from learnt
    union all
    select
        user_id,
        date_trunc('day', valid_from) + interval 1 day as seen_at
    from users
),

first_seen as (
    select
        user_id,
        min(seen_at) as seen_at
    from seen
    group by all
),

grid as (
    select
        first_seen.user_id,
        days.as_of,
        days.as_of_date
    from first_seen
    inner join days on first_seen.seen_at <= days.as_of
),

joined as (
    select
        grid.user_id,
        grid.as_of,
        -- What a later day says of itself is not yet known, and no age.
        case when users.signed_up_at <= grid.as_of then users.signed_up_at end as signed_up_at,
        lifetime.purchases_lifetime,
        lifetime.ratings_lifetime,
        lifetime.rating_sum_lifetime,
        lifetime.first_event_at,
        lifetime.last_event_at,
        lifetime.last_purchase_at
    from grid
    asof left join lifetime on grid.user_id = lifetime.user_id and grid.as_of_date >= lifetime.known_on
    asof left join users on grid.user_id = users.user_id and grid.as_of > users.valid_from
),

final as (
    select
        joined.user_id,
        joined.as_of,
        cast(coalesce(windowed.events_7d, 0) as integer) as events_7d,
        cast(coalesce(windowed.events_30d, 0) as integer) as events_30d,
        {{ counted('windowed.views_7d', 'coverage.views_known_on') }} as views_7d,
        {{ counted('windowed.views_30d', 'coverage.views_known_on') }} as views_30d,
        {{ counted('windowed.add_to_carts_30d', 'coverage.add_to_carts_known_on') }} as add_to_carts_30d,
        {{ counted('windowed.purchases_7d', 'coverage.purchases_known_on') }} as purchases_7d,
        {{ counted('windowed.purchases_30d', 'coverage.purchases_known_on') }} as purchases_30d,
        {{ counted('joined.purchases_lifetime', 'coverage.purchases_known_on') }} as purchases_lifetime,
        case
            when coverage.spend_known_on <= joined.as_of then cast(coalesce(windowed.spend_30d, 0) as double)
        end as spend_30d,
        cast(priced.mean_purchase_price_90d as double) as mean_purchase_price_90d,
        {{ counted('windowed.sessions_30d', 'coverage.sessions_known_on') }} as sessions_30d,
        cast(coalesce(windowed.active_days_30d, 0) as integer) as active_days_30d,
        {{ counted('categorised.distinct_categories_30d', 'coverage.categories_known_on') }} as distinct_categories_30d,
        categorised.top_category_share_30d,
        {{ smoothed_conversion('windowed', 'shop') }} as conversion_30d,
        {{ counted('joined.ratings_lifetime', 'coverage.ratings_known_on') }} as ratings_lifetime,
        cast(joined.rating_sum_lifetime as double) / nullif(joined.ratings_lifetime, 0) as rating_mean,
        {{ days_before('joined.last_event_at', 'joined.as_of') }} as days_since_last_event,
        {{ days_before('joined.last_purchase_at', 'joined.as_of') }} as days_since_last_purchase,
        {{ days_before('least(joined.signed_up_at, joined.first_event_at)', 'joined.as_of') }} as tenure_days,
        joined.as_of as available_at
    from joined
    left join windowed on joined.user_id = windowed.user_id and joined.as_of = windowed.as_of
    left join priced on joined.user_id = priced.user_id and joined.as_of = priced.as_of
    left join categorised on joined.user_id = categorised.user_id and joined.as_of = categorised.as_of
    left join shop on joined.as_of = shop.as_of
    cross join coverage
)

select * from final
