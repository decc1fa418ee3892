{{ config(materialized='incremental') }}
-- What became known about a user's day with one brand, by the day it became known.

with

events as (
    select * from {{ ref('int_known_events') }}
)

{{ affinity_days('brand') }}
