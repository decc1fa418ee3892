with

state as (
    {{ built(ref('int_item_state')) }}
),

versions as (
    select * from {{ ref('int_item_versions') }}
),

coverage as (
    select * from {{ ref('int_coverage') }}
),

shop as (
    {{ shop_rates([('purchases', 30), ('purchases', 90), ('add_to_carts', 30)]) }}
),

ratings as (
    select
        as_of,
        cast(sum(rating_sum_lifetime) as double) / nullif(sum(ratings_lifetime), 0) as rating_mean
    from state
    group by all
),

described as (
    select
        state.*,
        versions.category,
        versions.brand,
        versions.price,
        versions.is_available,
        -- What a later day says of itself is not yet known, and no age.
        least(case when versions.created_at <= state.as_of then versions.created_at end, state.first_event_at) as began_at
    from state
    left join versions
        on
            state.item_id = versions.item_id
            and state.as_of > versions.holds_from
            and state.as_of <= versions.holds_until
),

final as (
    select
        state.item_id,
        state.as_of,
        state.category,
        state.brand,
        state.price,
        state.is_available,
        cast(state.events_1d as integer) as events_1d,
        cast(state.events_7d as integer) as events_7d,
        cast(state.events_30d as integer) as events_30d,
        cast(state.events_90d as integer) as events_90d,
        {{ windowed('views', [1, 7, 30, 90]) }},
        {{ windowed('add_to_carts', [1, 7, 30, 90]) }},
        {{ windowed('purchases', [1, 7, 30, 90]) }},
        case when coverage.spend_known_on <= state.as_of then cast(state.spend_30d as double) end as revenue_30d,
        cast(case when state.units_90d > 0 then state.spend_90d / state.units_90d end as double) as mean_purchase_price_90d,
        state.price / nullif(median(state.price) over (partition by state.as_of, state.category), 0) as price_to_category_median,
        case
            when state.price is not null
                then percent_rank() over (partition by state.as_of, state.category, state.price is null order by state.price)
        end as price_percentile_in_category,
        {{ smoothed_rate('purchases', 30) }} as conversion_30d,
        {{ smoothed_rate('purchases', 90) }} as conversion_90d,
        {{ smoothed_rate('add_to_carts', 30) }} as add_to_carts_per_view_30d,
        -- One added above and below: an item with no past is neither rising nor falling.
        (state.events_1d + 1) / (state.events_7d / 7.0 + 1) as trend_ratio_1d,
        (state.events_7d + 1) / cast(state.events_14d - state.events_7d + 1 as double) as trend_ratio_7d,
        cast(rank() over (partition by state.as_of order by state.events_7d desc) as integer) as popularity_rank_7d,
        cast(rank() over (partition by state.as_of order by state.events_30d desc) as integer) as popularity_rank_30d,
        cast(rank() over (partition by state.as_of, state.category order by state.events_7d desc) as integer)
            as popularity_rank_in_category_7d,
        {{ windowed('ratings', [30, 0]) }},
        cast(state.rating_sum_lifetime as double) / nullif(state.ratings_lifetime, 0) as rating_mean,
        (cast(state.rating_sum_lifetime as double) + 10 * ratings.rating_mean) / (state.ratings_lifetime + 10) as rating_mean_smoothed,
        {{ days_before('state.last_event_at', 'state.as_of') }} as days_since_last_event,
        {{ days_before('state.last_purchase_at', 'state.as_of') }} as days_since_last_purchase,
        {{ days_before('state.began_at', 'state.as_of') }} as age_days,
        state.as_of as available_at
    from described as state
    left join shop on state.as_of = shop.as_of
    left join ratings on state.as_of = ratings.as_of
    cross join coverage
)

select * from final
