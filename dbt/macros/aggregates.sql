{% macro happened() -%}
    {#- What both a user's and an item's day amount to: counts by kind, ratings, money, the first and the last moment. -#}
    cast(count(*) as integer) as events,
    cast(count(*) filter (where event_type = 'view') as integer) as views,
    cast(count(*) filter (where event_type = 'add_to_cart') as integer) as add_to_carts,
    cast(count(*) filter (where event_type = 'purchase') as integer) as purchases,
    cast(count(event_value) filter (where event_type = 'rating') as integer) as ratings,
    sum(event_value) filter (where event_type = 'rating') as rating_sum,
    sum(event_value) filter (where event_type = 'purchase') as spend,
    sum(coalesce(quantity, 1)) filter (where event_type = 'purchase' and event_value is not null) as units,
    min(event_at) as first_event_at,
    max(event_at) as last_event_at,
    max(event_at) filter (where event_type = 'purchase') as last_purchase_at
{%- endmacro %}


{% macro arrived() -%}
    {#- Narrows the run's events to the days that the model lacks. -#}
    {%- if carries_on() -%} known_on >= {{ first_day() }} {%- else -%} true {%- endif -%}
{%- endmacro %}


{% macro known_earlier(keys, columns) -%}
    {#- Rows of this very model that say what was known of the same day of the same keys before this run. -#}
    select {{ columns | join(', ') }}
    from {{ this }}
    where
        known_on < {{ first_day() }}
        and event_date < {{ first_day() }} - 1
        and event_date >= {{ earliest_day() }}
        and ({{ keys | join(', ') }}) in (select ({{ keys | join(', ') }}) from counted where event_date < {{ first_day() }} - 1)
{%- endmacro %}


{% macro affinity_days(facet) -%}
    {#- What became known about a user's day with one category, or brand, by the day it became known. -#}
    select
        user_id,
        {{ facet }},
        event_date,
        known_on,
        cast(count(*) as integer) as events,
        cast(count(*) filter (where event_type = 'add_to_cart') as integer) as add_to_carts,
        cast(count(*) filter (where event_type = 'purchase') as integer) as purchases,
        max(event_at) as last_event_at
    from events
    where {{ facet }} is not null and {{ arrived() }}
    group by all
{%- endmacro %}
