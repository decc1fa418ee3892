-- Of the last days of a run only, as many as a lookup reaches back: a serving mart, from which nothing learns of the past.

with

days as (
    select
        greatest(min(as_of_date), max(as_of_date) - {{ var('ttl_days') }} + 1) as first_on,
        max(as_of_date) as last_on
    from {{ ref('int_days') }}
),

pair_days as (
    select pair_days.*
    from {{ ref('int_item_pair_days') }} as pair_days
    cross join days
    where
        pair_days.known_on <= {{ last_day() }}
        and pair_days.event_date >= days.first_on - if(pair_days.co_purchases > 0, 90, 30)
        {% if asked('as_of_from') %}
            and pair_days.event_date >= {{ last_day() }} - 89 - {{ var('ttl_days') }}
        {% endif %}
),

coverage as (
    select * from {{ ref('int_coverage') }}
),

-- Most pairs never come often, and are out of the way early.
frequent as (
    select
        item_id,
        other_item_id
    from pair_days
    group by all
    having sum(co_purchases) >= 2 or sum(co_views) >= 3 or item_id = other_item_id
),

-- What arrives leaves again once it is older than its window.
changes as (
    select
        item_id,
        other_item_id,
        known_on as changed_on,
        if(known_on <= event_date + 90, co_purchases, 0) as co_purchases,
        if(known_on <= event_date + 30, co_views, 0) as co_views
    from pair_days
    union all
    select
        item_id,
        other_item_id,
        event_date + 31 as changed_on,
        0 as co_purchases,
        -co_views as co_views
    from pair_days
    where known_on <= event_date + 30 and co_views > 0
    union all
    select
        item_id,
        other_item_id,
        event_date + 91 as changed_on,
        -co_purchases as co_purchases,
        0 as co_views
    from pair_days
    where known_on <= event_date + 90 and co_purchases > 0
),

netted as (
    select
        changes.item_id,
        changes.other_item_id,
        greatest(changes.changed_on, days.first_on) as changed_on,
        sum(changes.co_purchases) as co_purchases,
        sum(changes.co_views) as co_views
    from changes
    inner join frequent
        on changes.item_id = frequent.item_id and changes.other_item_id = frequent.other_item_id
    cross join days
    where changes.changed_on <= days.last_on
    group by all
),

states as (
    select
        item_id,
        other_item_id,
        changed_on as holds_from,
        lead(changed_on) over growing - 1 as holds_until,
        cast(sum(co_purchases) over growing as integer) as co_purchases_90d,
        cast(sum(co_views) over growing as integer) as co_views_30d
    from netted
    window growing as (partition by item_id, other_item_id order by changed_on)
),

counted as (
    select
        states.item_id,
        states.other_item_id,
        states.co_purchases_90d,
        states.co_views_30d,
        cast(unnest(generate_series(
            states.holds_from, coalesce(states.holds_until, days.last_on), interval 1 day
        )) as timestamp) as as_of
    from states
    cross join days
    where states.item_id = states.other_item_id or states.co_purchases_90d >= 2 or states.co_views_30d >= 3
),

-- An item met with itself says on how many users' days it was bought, and viewed.
alone as (
    select
        as_of,
        item_id,
        co_purchases_90d as purchase_days,
        co_views_30d as view_days
    from counted
    where item_id = other_item_id
),

-- Every item of a pair was met alone; a left join keeps the optimizer from pairing all items with all first.
supported as (
    select
        counted.as_of,
        counted.item_id,
        counted.other_item_id,
        counted.co_purchases_90d,
        counted.co_views_30d,
        counted.co_purchases_90d / (sqrt(cast(left_side.purchase_days as double) * right_side.purchase_days) + 5) as bought_together_score,
        counted.co_views_30d / (sqrt(cast(left_side.view_days as double) * right_side.view_days) + 5) as similar_score
    from counted
    left join alone as left_side
        on counted.as_of = left_side.as_of and counted.item_id = left_side.item_id
    left join alone as right_side
        on counted.as_of = right_side.as_of and counted.other_item_id = right_side.item_id
    where counted.item_id <> counted.other_item_id
),

both_ways as (
    select * from supported
    union all by name
    select * replace (other_item_id as item_id, item_id as other_item_id)
    from supported
),

bought_together as (
    select
        *,
        cast(row_number() over (
            partition by as_of, item_id order by bought_together_score desc, other_item_id asc
        ) as integer) as bought_together_rank
    from both_ways
    where co_purchases_90d >= 2
    qualify bought_together_rank <= 20
),

viewed_together as (
    select
        *,
        cast(row_number() over (partition by as_of, item_id order by similar_score desc, other_item_id asc) as integer) as similar_rank
    from both_ways
    where co_views_30d >= 3
    qualify similar_rank <= 20
),

best as (
    select * from bought_together
    union all by name
    select * from viewed_together
),

ranked as (
    select
        * exclude (bought_together_rank, similar_rank),
        max(bought_together_rank) as bought_together_rank,
        max(similar_rank) as similar_rank
    from best
    group by all
),

final as (
    select
        ranked.item_id,
        ranked.other_item_id,
        ranked.as_of,
        case when coverage.purchases_known_on <= ranked.as_of then ranked.co_purchases_90d end as co_purchases_90d,
        ranked.bought_together_rank,
        case when ranked.co_purchases_90d > 0 then ranked.bought_together_score end as bought_together_score,
        case when coverage.views_known_on <= ranked.as_of then ranked.co_views_30d end as co_views_30d,
        ranked.similar_rank,
        case when ranked.co_views_30d > 0 then ranked.similar_score end as similar_score,
        ranked.as_of as available_at
    from ranked
    cross join coverage
)

select * from final
