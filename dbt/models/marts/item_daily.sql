with

days as (
    select * from {{ ref('int_days') }}
),

item_days as (
    select * from {{ ref('int_item_days') }}
),

items as (
    select * from {{ ref('stg_items') }}
),

coverage as (
    select * from {{ ref('int_coverage') }}
),

windowed as (
    select
        item_days.item_id,
        days.as_of,
        sum(item_days.events) filter (where {{ within(1) }}) as events_1d,
        sum(item_days.events) filter (where {{ within(7) }}) as events_7d,
        sum(item_days.events) filter (where {{ within(14) }}) as events_14d,
        sum(item_days.events) as events_30d,
        sum(item_days.views) filter (where {{ within(7) }}) as views_7d,
        sum(item_days.views) as views_30d,
        sum(item_days.add_to_carts) filter (where {{ within(7) }}) as add_to_carts_7d,
        sum(item_days.purchases) filter (where {{ within(7) }}) as purchases_7d,
        sum(item_days.purchases) as purchases_30d
    from item_days
    inner join days on {{ visible('item_days', 30) }}
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
        item_days.item_id,
        days.as_of,
        sum(item_days.revenue) / nullif(sum(item_days.units), 0) as mean_purchase_price_90d
    from item_days
    inner join days on {{ visible('item_days', 90) }}
    where item_days.revenue is not null
    group by all
),

-- What an item's whole past amounts to, as it grew from one day to the next.
learnt as (
    select
        item_id,
        known_on,
        sum(ratings) as ratings,
        sum(rating_sum) as rating_sum,
        min(first_event_at) as first_event_at,
        max(last_event_at) as last_event_at
    from item_days
    group by all
),

lifetime as (
    select
        item_id,
        known_on,
        sum(ratings) over growing as ratings_lifetime,
        sum(rating_sum) over growing as rating_sum_lifetime,
        min(first_event_at) over growing as first_event_at,
        max(last_event_at) over growing as last_event_at
    from learnt
    window growing as (partition by item_id order by known_on)
),

seen as (
    select
        item_id,
        cast(known_on as timestamp) as seen_at
    from learnt
    union all
    select
        item_id,
        date_trunc('day', valid_from) + interval 1 day as seen_at
    from items
),

first_seen as (
    select
        item_id,
        min(seen_at) as seen_at
    from seen
    group by all
),

grid as (
    select
        first_seen.item_id,
        days.as_of,
        days.as_of_date
    from first_seen
    inner join days on first_seen.seen_at <= days.as_of
),

joined as (
    select
        grid.item_id,
        grid.as_of,
        items.category,
        items.price,
        items.is_available,
        -- What a later day says of itself is not yet known, and no age.
        case when items.created_at <= grid.as_of then items.created_at end as created_at,
        lifetime.ratings_lifetime,
        lifetime.rating_sum_lifetime,
        lifetime.first_event_at,
        lifetime.last_event_at
    from grid
    asof left join lifetime on grid.item_id = lifetime.item_id and grid.as_of_date >= lifetime.known_on
    asof left join items on grid.item_id = items.item_id and grid.as_of > items.valid_from
),

final as (
    select
        joined.item_id,
        joined.as_of,
        joined.category,
        joined.price,
        joined.is_available,
        cast(coalesce(windowed.events_1d, 0) as integer) as events_1d,
        cast(coalesce(windowed.events_7d, 0) as integer) as events_7d,
        cast(coalesce(windowed.events_30d, 0) as integer) as events_30d,
        {{ counted('windowed.views_7d', 'coverage.views_known_on') }} as views_7d,
        {{ counted('windowed.views_30d', 'coverage.views_known_on') }} as views_30d,
        {{ counted('windowed.add_to_carts_7d', 'coverage.add_to_carts_known_on') }} as add_to_carts_7d,
        {{ counted('windowed.purchases_7d', 'coverage.purchases_known_on') }} as purchases_7d,
        {{ counted('windowed.purchases_30d', 'coverage.purchases_known_on') }} as purchases_30d,
        cast(priced.mean_purchase_price_90d as double) as mean_purchase_price_90d,
        joined.price / nullif(median(joined.price) over (partition by joined.as_of, joined.category), 0) as price_to_category_median,
        {{ smoothed_conversion('windowed', 'shop') }} as conversion_30d,
        -- One added above and below: an item with no past is neither rising nor falling.
        (coalesce(windowed.events_7d, 0) + 1)
        / cast(coalesce(windowed.events_14d, 0) - coalesce(windowed.events_7d, 0) + 1 as double) as trend_ratio_7d,
        cast(rank() over (partition by joined.as_of order by coalesce(windowed.events_7d, 0) desc) as integer) as popularity_rank_7d,
        {{ counted('joined.ratings_lifetime', 'coverage.ratings_known_on') }} as ratings_lifetime,
        cast(joined.rating_sum_lifetime as double) / nullif(joined.ratings_lifetime, 0) as rating_mean,
        {{ days_before('joined.last_event_at', 'joined.as_of') }} as days_since_last_event,
        {{ days_before('least(joined.created_at, joined.first_event_at)', 'joined.as_of') }} as age_days,
        joined.as_of as available_at
    from joined
    left join windowed on joined.item_id = windowed.item_id and joined.as_of = windowed.as_of
    left join priced on joined.item_id = priced.item_id and joined.as_of = priced.as_of
    left join shop on joined.as_of = shop.as_of
    cross join coverage
)

select * from final
