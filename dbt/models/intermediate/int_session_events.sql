{{ config(materialized='incremental') }}
-- The events as a session remembers them: each on the shelf that its item was known to be on when it happened.

with

events as (
    select * from {{ ref('int_known_events') }}
    where {{ arrived() }}
),

versions as (
    select * from {{ ref('int_item_versions') }}
)

select
    events.user_id,
    events.known_on,
    events.event_at,
    events.event_id,
    events.item_id,
    events.event_type,
    versions.category
from events
asof left join versions on events.item_id = versions.item_id and events.event_at >= versions.holds_from
