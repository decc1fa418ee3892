{% macro utc(column) -%}
    {#- The instant as a timestamp without zone that reads as UTC, whatever the session's zone is. -#}
    make_timestamp(epoch_us({{ column }}))
{%- endmacro %}


{% macro built_days() -%}
    {#- The rows of this run: older days were tested when they were built. -#}
    {%- if asked('as_of_from') %} as_of >= cast('{{ asked("as_of_from") }}' as timestamp) {%- else %} true {%- endif -%}
    {%- if asked('as_of_to') %} and as_of <= cast('{{ asked("as_of_to") }}' as timestamp) {%- endif -%}
{%- endmacro %}


{% macro days_before(moment, as_of) -%}
    {#- Days, with their fraction, from a moment to midnight. -#}
    date_diff('microsecond', {{ moment }}, {{ as_of }}) / 86400000000.0
{%- endmacro %}
