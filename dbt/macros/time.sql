{% macro utc(column) -%}
    {#- The instant as a timestamp without zone that reads as UTC, whatever the session's zone is. -#}
    make_timestamp(epoch_us({{ column }}))
{%- endmacro %}


{% macro visible(aggregate, days) -%}
    {#- The join condition of a window: what was known at `days.as_of` and happened in the `days` days before it. -#}
    days.as_of_date >= {{ aggregate }}.known_on
    and days.as_of_date <= {{ aggregate }}.event_date + {{ days }}
{%- endmacro %}


{% macro within(days) -%}
    {#- Narrows an aggregate of a wider window to the last `days` days before `days.as_of`. -#}
    days.as_of_date <= event_date + {{ days }}
{%- endmacro %}


{% macro built_days() -%}
    {#- The rows of this run: older days were tested when they were built. -#}
    {%- if var('as_of_from') %} as_of >= cast('{{ var("as_of_from") }}' as timestamp) {%- else %} true {%- endif -%}
    {%- if var('as_of_to') %} and as_of <= cast('{{ var("as_of_to") }}' as timestamp) {%- endif -%}
{%- endmacro %}
