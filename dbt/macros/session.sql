{% macro session_items() -%}
    {#- How many events a session remembers. The four numbers of this file are those of pipelines/streaming/session.py. -#}
    50
{%- endmacro %}


{% macro session_days() -%}
    {#- Events this much older than the user's newest are forgotten, and a user quiet for as long has no row. -#}
    30
{%- endmacro %}


{% macro session_gap_minutes() -%}
    {#- A longer pause ends a visit. -#}
    30
{%- endmacro %}


{% macro session_weight(event_type, happened_us, newest_us) -%}
    {#- What an event says about a category: the gain of its type, halved with every 24 hours before the newest event. -#}
    case {{ event_type }} when 'purchase' then 3.0 when 'add_to_cart' then 2.0 else 1.0 end
    * pow(2.0, -({{ newest_us }} - {{ happened_us }}) / 86400000000.0)
{%- endmacro %}
