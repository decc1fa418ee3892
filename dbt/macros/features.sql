{% macro counted(count, known_on) -%}
    {#- A count: zero where nothing happened, null as long as the source has shown no such event. -#}
    case when {{ known_on }} <= joined.as_of then cast(coalesce({{ count }}, 0) as integer) end
{%- endmacro %}


{% macro smoothed_conversion(windowed, shop) -%}
    {#- Purchases per view in 30 days, drawn to the shop's own rate of the day as if by 20 views more; null without views. -#}
    (coalesce({{ windowed }}.purchases_30d, 0) + 20 * {{ shop }}.conversion_30d) / (coalesce({{ windowed }}.views_30d, 0) + 20)
{%- endmacro %}


{% macro days_before(moment, as_of) -%}
    {#- Days, with their fraction, from a moment to midnight. -#}
    date_diff('microsecond', {{ moment }}, {{ as_of }}) / 86400000000.0
{%- endmacro %}
