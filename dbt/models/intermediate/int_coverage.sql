-- One row: since when the lake knows each kind of fact. What a source lacks is null in every mart, never zero.

with

events as (
    select * from {{ ref('int_known_events') }}
),

coverage as (
    select
        min(known_on) filter (where event_type = 'view') as views_known_on,
        min(known_on) filter (where event_type = 'add_to_cart') as add_to_carts_known_on,
        min(known_on) filter (where event_type = 'purchase') as purchases_known_on,
        min(known_on) filter (where event_type = 'purchase' and event_value is not null) as spend_known_on,
        min(known_on) filter (where event_type = 'rating') as ratings_known_on,
        min(known_on) filter (where session_id is not null) as sessions_known_on,
        min(known_on) filter (where category is not null) as categories_known_on
    from events
)

select * from coverage
