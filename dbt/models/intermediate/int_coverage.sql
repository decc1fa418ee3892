-- One row: since when the lake knows each kind of fact. What a source lacks is null in every mart, never zero.

with

facts as (
    select * from {{ ref('int_fact_days') }}
),

coverage as (
    select
        min(known_on) filter (where views) as views_known_on,
        min(known_on) filter (where clicks) as clicks_known_on,
        min(known_on) filter (where add_to_carts) as add_to_carts_known_on,
        min(known_on) filter (where purchases) as purchases_known_on,
        min(known_on) filter (where spend) as spend_known_on,
        min(known_on) filter (where ratings) as ratings_known_on,
        min(known_on) filter (where sessions) as sessions_known_on,
        min(known_on) filter (where devices) as devices_known_on,
        min(known_on) filter (where categories) as categories_known_on,
        min(known_on) filter (where brands) as brands_known_on
    from facts
)

select * from coverage
