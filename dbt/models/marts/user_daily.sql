with

state as (
    {{ built(ref('int_user_state')) }}
),

versions as (
    select * from {{ ref('int_user_versions') }}
),

coverage as (
    select * from {{ ref('int_coverage') }}
),

shop as (
    {{ shop_rates([('purchases', 30), ('add_to_carts', 30)]) }}
),

categories as (
    {{ concentration(ref('user_category_daily'), 'category', 'categories') }}
),

brands as (
    {{ concentration(ref('user_brand_daily'), 'brand', 'brands', least=2) }}
),

profiled as (
    select
        state.*,
        versions.country,
        versions.age_band,
        -- What a later day says of itself is not yet known, and no age.
        least(case when versions.signed_up_at <= state.as_of then versions.signed_up_at end, state.first_event_at) as began_at
    from state
    left join versions
        on
            state.user_id = versions.user_id
            and state.as_of > versions.holds_from
            and state.as_of <= versions.holds_until
),

final as (
    select
        state.user_id,
        state.as_of,
        cast(state.events_1d as integer) as events_1d,
        cast(state.events_7d as integer) as events_7d,
        cast(state.events_30d as integer) as events_30d,
        cast(state.events_90d as integer) as events_90d,
        {{ windowed('views', [1, 7, 30, 90]) }},
        {{ windowed('clicks', [30]) }},
        {{ windowed('add_to_carts', [1, 7, 30, 90]) }},
        {{ windowed('purchases', [1, 7, 30, 90, 0]) }},
        state.events_30d / cast(nullif(state.active_days_30d, 0) as double) as events_per_active_day_30d,
        {{ smoothed_rate('purchases', 30) }} as conversion_30d,
        {{ smoothed_rate('add_to_carts', 30) }} as add_to_carts_per_view_30d,
        case when coverage.spend_known_on <= state.as_of then cast(state.spend_30d as double) end as spend_30d,
        case when coverage.spend_known_on <= state.as_of then cast(state.spend_90d as double) end as spend_90d,
        cast(case when state.prices_90d > 0 then state.spend_90d / nullif(state.units_90d, 0) end as double) as mean_purchase_price_90d,
        -- From integers: exactly zero where every price was the same.
        sqrt(cast(state.prices_90d * state.price_squares_90d - state.price_sum_90d * state.price_sum_90d as double))
        / nullif(state.prices_90d, 0) / 10000 as purchase_price_spread_90d,
        {{ counted('state.purchase_days_90d', 'purchases_known_on') }} as purchase_days_90d,
        case
            when coverage.purchases_known_on <= state.as_of
                then
                    state.purchase_days_90d * 30
                    / least(90, greatest(30, {{ days_before('state.began_at', 'state.as_of') }}))
        end as purchase_days_per_30_days,
        {{ windowed('sessions', [7, 30, 90]) }},
        state.session_micros_30d / 60000000.0 / nullif(state.sessions_30d, 0) as mean_session_minutes_30d,
        state.session_events_30d / cast(nullif(state.sessions_30d, 0) as double) as events_per_session_30d,
        cast(state.active_days_7d as integer) as active_days_7d,
        cast(state.active_days_30d as integer) as active_days_30d,
        cast(state.active_days_90d as integer) as active_days_90d,
        {{ share('night_events_30d', 'events_30d') }} as night_share_30d,
        {{ share('morning_events_30d', 'events_30d') }} as morning_share_30d,
        {{ share('afternoon_events_30d', 'events_30d') }} as afternoon_share_30d,
        {{ share('weekend_events_30d', 'events_30d') }} as weekend_share_30d,
        {{ share('mobile_events_30d', 'device_events_30d') }} as mobile_share_30d,
        {{ share('tablet_events_30d', 'device_events_30d') }} as tablet_share_30d,
        {{ counted('coalesce(categories.distinct_categories_30d, 0)', 'categories_known_on') }} as distinct_categories_30d,
        categories.top_category_share_30d,
        categories.category_concentration_30d,
        {{ counted('coalesce(brands.distinct_brands_30d, 0)', 'brands_known_on') }} as distinct_brands_30d,
        brands.top_brand_share_30d,
        brands.brand_concentration_30d,
        {{ counted('state.ratings_lifetime', 'ratings_known_on') }} as ratings_lifetime,
        cast(state.rating_sum_lifetime as double) / nullif(state.ratings_lifetime, 0) as rating_mean,
        {{ days_before('state.last_event_at', 'state.as_of') }} as days_since_last_event,
        {{ days_before('state.last_add_to_cart_at', 'state.as_of') }} as days_since_last_add_to_cart,
        {{ days_before('state.last_purchase_at', 'state.as_of') }} as days_since_last_purchase,
        {{ days_before('state.began_at', 'state.as_of') }} as tenure_days,
        state.country,
        state.age_band,
        state.as_of as available_at
    from profiled as state
    left join categories on state.user_id = categories.user_id and state.as_of = categories.as_of
    left join brands on state.user_id = brands.user_id and state.as_of = brands.as_of
    left join shop on state.as_of = shop.as_of
    cross join coverage
)

select * from final
