{{ config(materialized='incremental', unique_key='as_of') }}
-- Every known user's sums over all windows, at each midnight.
{%- set sums = {
    'events': [1, 7, 30, 90],
    'views': [1, 7, 30, 90],
    'clicks': [30],
    'add_to_carts': [1, 7, 30, 90],
    'purchases': [1, 7, 30, 90, 0],
    'spend': [30, 90],
    'units': [90],
    'prices': [90],
    'price_sum': [90],
    'price_squares': [90],
    'purchase_days': [90],
    'sessions': [7, 30, 90],
    'session_events': [30],
    'session_micros': [30],
    'active_days': [7, 30, 90],
    'night_events': [30],
    'morning_events': [30],
    'afternoon_events': [30],
    'weekend_events': [30],
    'category_events': [30],
    'brand_events': [30],
    'device_events': [30],
    'mobile_events': [30],
    'tablet_events': [30],
    'ratings': [0],
    'rating_sum': [0],
} %}
{%- set types = {
    'spend': 'decimal(38, 4)', 'units': 'decimal(38, 4)', 'rating_sum': 'decimal(38, 4)', 'price_sum': 'hugeint', 'price_squares': 'hugeint'
} %}
{%- set lows = ['first_event_at'] %}
{%- set highs = ['last_event_at', 'last_add_to_cart_at', 'last_purchase_at'] %}

with

newcomers as (
    {{ newcomers(ref('int_user_versions'), 'user_id') }}
),

{{ rolled(ref('int_user_days'), 'user_id', sums, types, lows, highs, 'newcomers') }}

select
    {{ rolled_columns('user_id', sums, lows, highs) }}
from rolled
