-- A condition of the template is no level of the SQL.
-- noqa: disable=LT02
{{ config(materialized='incremental') }}
-- On how many users' days two items came together, by the day this became known; an item with itself is its own days.

with

baskets as (
    select * from {{ ref('int_basket_items') }}
),

arrived as (
    select * from baskets
    where {{ arrived() }} and known_on <= {{ last_day() }}
),

standing as (
    select baskets.*
    from baskets
    {% if carries_on() %}
        semi join arrived
            on
                baskets.event_date = arrived.event_date
                and baskets.user_id = arrived.user_id
                and baskets.event_type = arrived.event_type
    {% endif %}
    where
        baskets.known_on <= {{ last_day() }}
        {% if carries_on() %}
            and baskets.event_date >= {{ earliest_day() }}
        {% endif %}
),

paired as (
    select
        arrived.item_id,
        standing.item_id as other_item_id,
        arrived.event_date,
        arrived.known_on,
        arrived.event_type
    from arrived
    inner join standing
        on
            arrived.event_type = standing.event_type
            and arrived.user_id = standing.user_id
            and arrived.event_date = standing.event_date
    -- Of two, the one that became known later meets the other; of two at once, each pair meets once.
    where
        arrived.known_on > standing.known_on
        or (arrived.known_on = standing.known_on and arrived.item_id <= standing.item_id)
)

select
    least(item_id, other_item_id) as item_id,
    greatest(item_id, other_item_id) as other_item_id,
    event_date,
    known_on,
    cast(count(*) filter (where event_type = 'purchase') as integer) as co_purchases,
    cast(count(*) filter (where event_type = 'view') as integer) as co_views
from paired
group by all
