{% macro counted(count, known_on) -%}
    {#- A count: zero where nothing happened, null as long as the source has shown no such event. -#}
    case when {{ known_on }} <= joined.as_of then cast(coalesce({{ count }}, 0) as integer) end
{%- endmacro %}


{% macro smoothed_conversion(purchases, views, as_of) -%}
    {#- Purchases per view, drawn to the shop's own rate of the day as if by 20 views more. -#}
    (
        coalesce({{ purchases }}, 0)
        + 20.0 * sum({{ purchases }}) over (partition by {{ as_of }}) / nullif(sum({{ views }}) over (partition by {{ as_of }}), 0)
    ) / (coalesce({{ views }}, 0) + 20.0)
{%- endmacro %}


{% macro days_before(moment, as_of) -%}
    {#- Days, with their fraction, from a moment to midnight. -#}
    date_diff('microsecond', {{ moment }}, {{ as_of }}) / 86400000000.0
{%- endmacro %}
