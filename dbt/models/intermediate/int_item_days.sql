{{ config(materialized='incremental') }}
-- What became known about an item's day, by the day it became known: sums over these rows count every event once.

with

events as (
    select * from {{ ref('int_known_events') }}
),

counted as (
    select
        item_id,
        event_date,
        known_on,
        {{ happened() }}
    from events
    where {{ arrived() }}
    group by all
)

select * from counted
