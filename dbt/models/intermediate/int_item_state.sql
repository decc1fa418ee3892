{{ config(materialized='incremental', unique_key='as_of') }}
-- Every known item's sums over all windows, at each midnight.
{%- set sums = {
    'events': [1, 7, 14, 30, 90],
    'views': [1, 7, 30, 90],
    'add_to_carts': [1, 7, 30, 90],
    'purchases': [1, 7, 30, 90],
    'spend': [30, 90],
    'units': [90],
    'ratings': [30, 0],
    'rating_sum': [0],
} %}
{%- set types = {'spend': 'decimal(38, 4)', 'units': 'decimal(38, 4)', 'rating_sum': 'decimal(38, 4)'} %}
{%- set lows = ['first_event_at'] %}
{%- set highs = ['last_event_at', 'last_purchase_at'] %}

with

newcomers as (
    {{ newcomers(ref('int_item_versions'), 'item_id') }}
),

{{ rolled(ref('int_item_days'), 'item_id', sums, types, lows, highs, 'newcomers') }}

select
    {{ rolled_columns('item_id', sums, lows, highs) }}
from rolled
