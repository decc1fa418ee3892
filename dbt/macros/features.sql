-- A loop of the template is no level of the SQL.
-- noqa: disable=LT02

{% macro counted(count, known_on) -%}
    {#- A count: zero where nothing happened, null as long as the source has shown no such event. -#}
    case when coverage.{{ known_on }} <= state.as_of then cast({{ count }} as integer) end
{%- endmacro %}


{% macro windowed(measure, windows) -%}
    {#- A count over several windows, as columns of the same names. -#}
    {%- for window in windows -%}
        {{ counted('state.' ~ measured(measure, window), measure ~ '_known_on') }} as {{ measured(measure, window) }}
        {%- if not loop.last %},
        {% endif %}
    {%- endfor -%}
{%- endmacro %}


{% macro share(part, whole) -%}
    {#- A share of events; null where there are none. -#}
    state.{{ part }} / cast(nullif(state.{{ whole }}, 0) as double)
{%- endmacro %}


{% macro smoothed_rate(measure, days) -%}
    {#- Times a view, drawn to the shop's own rate of the day as if by 20 views more; null without views. -#}
    (state.{{ measure }}_{{ days }}d + 20 * shop.{{ measure }}_a_view_{{ days }}d) / (state.views_{{ days }}d + 20)
{%- endmacro %}


{% macro shop_rates(measures) -%}
    {#- The shop's own rates of the day, to which the rates of those with few views are drawn. -#}
    select
        as_of,
        {% for measure, days in measures %}
            cast(sum({{ measure }}_{{ days }}d) as double) / nullif(sum(views_{{ days }}d), 0) as {{ measure }}_a_view_{{ days }}d
            {%- if not loop.last %},{% endif %}
        {% endfor %}
    from state
    group by all
{%- endmacro %}


{% macro built(state, columns=none) -%}
    {#- A state's rows of the days that this run builds; of some of its columns. -#}
    select
        {% if columns %}
            {{ columns | join(', ') }},
            cast(as_of as timestamp) as as_of
        {% else %}
            * replace (cast(as_of as timestamp) as as_of)
        {% endif %}
    from {{ state }}
    where
        as_of <= {{ last_day() }}
        {% if asked('as_of_from') %}
            and as_of >= {{ first_day() }}
        {% endif %}
{%- endmacro %}
