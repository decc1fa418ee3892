-- A loop of the template is no level of the SQL.
-- noqa: disable=LT02

{#- A rolling state is kept, not summed anew: yesterday's sums, plus what became known today, minus what grew older than
    its window today. A day's cost is so the entities it carries and the day's own rows, whatever the length of the past
    and of the windows. Sums are of integers and decimals, so that every road to a day adds up to the same bytes. -#}


{% macro measured(measure, window) -%}
    {{- measure }}_{{ window ~ 'd' if window else 'lifetime' -}}
{%- endmacro %}


{% macro rolled(aggregates, key, sums, types, lows, highs, newcomers) -%}
    {#- The CTEs of a state with one row per key and day, from the day the key is known; the last is named `rolled`.
        aggregates: what became known of a key's day, by key, event_date and known_on.
        sums: measure -> windows in days; 0 is the whole past. types: measure -> type of its sums, bigint if unnamed.
        lows, highs: columns of which the least, the greatest, is kept. newcomers: CTE of keys by `changed_on`. -#}
    bounds as (
        select
            min(as_of_date) as first_on,
            max(as_of_date) as last_on
        from {{ ref('int_days') }}
    ),

    arriving as (
        select
            {{ key }},
            known_on as changed_on,
            {% for measure, windows in sums.items() %}
                {% for window in windows %}
                    {% if window %}
                        case when known_on <= event_date + {{ window }} then {{ measure }} end
                    {% else %}
                        {{ measure }}
                    {% endif %}
                    as {{ measured(measure, window) }},
                {% endfor %}
            {% endfor %}
            {{ (lows + highs) | join(', ') }}
        from {{ aggregates }}
        where
            known_on <= {{ last_day() }}
            {% if carries_on() %}
                and known_on >= {{ first_day() }}
            {% endif %}
    ),

    {% for window in sums.values() | sum(start=[]) | unique | select %}
        leaving_{{ window }}d as (
            select
                {{ key }},
                event_date + {{ window + 1 }} as changed_on,
                {% for measure, windows in sums.items() if window in windows %}
                    -{{ measure }} as {{ measured(measure, window) }},
                {% endfor %}
            from {{ aggregates }}
            where
                known_on <= event_date + {{ window }}
                and event_date <= {{ last_day() }} - {{ window + 1 }}
                {% if carries_on() %}
                    and event_date >= {{ first_day() }} - {{ window + 1 }}
                {% endif %}
        ),
    {% endfor %}

    {% if carries_on() %}
        carried as (
            select
                * exclude (as_of),
                as_of + 1 as changed_on
            from {{ this }}
            where as_of = {{ first_day() }} - 1
        ),
    {% endif %}

    changes as (
        select * from arriving
        {% for window in sums.values() | sum(start=[]) | unique | select %}
            union all by name
            select * from leaving_{{ window }}d
        {% endfor %}
        union all by name
        select * from {{ newcomers }}
        {% if carries_on() %}
            union all by name
            select * from carried
        {% endif %}
    ),

    netted as (
        select
            changes.{{ key }},
            greatest(changes.changed_on, bounds.first_on) as changed_on,
            {% for measure, windows in sums.items() %}
                {% for window in windows %}
                    cast(coalesce(sum(changes.{{ measured(measure, window) }}), 0) as {{ types.get(measure, 'bigint') }})
                    as {{ measured(measure, window) }},
                {% endfor %}
            {% endfor %}
            {% for low in lows %}
                min(changes.{{ low }}) as {{ low }},
            {% endfor %}
            {% for high in highs %}
                max(changes.{{ high }}) as {{ high }},
            {% endfor %}
        from changes
        cross join bounds
        where changes.changed_on <= bounds.last_on
        group by all
    ),

    {% if asked('as_of_from') and asked('as_of_from') == asked('as_of_to') %}
        rolled as (
            select
                * replace ({{ first_day() }} as changed_on)
            from netted
        )
    {% else %}
        growing as (
            select
                {{ key }},
                changed_on,
                lead(changed_on) over growth - 1 as holds_until,
                {% for measure, windows in sums.items() %}
                    {% for window in windows %}
                        cast(sum({{ measured(measure, window) }}) over growth as {{ types.get(measure, 'bigint') }})
                        as {{ measured(measure, window) }},
                    {% endfor %}
                {% endfor %}
                {% for low in lows %}
                    min({{ low }}) over growth as {{ low }},
                {% endfor %}
                {% for high in highs %}
                    max({{ high }}) over growth as {{ high }},
                {% endfor %}
            from netted
            window growth as (partition by {{ key }} order by changed_on)
        ),

        rolled as (
            select
                growing.* exclude (changed_on, holds_until),
                cast(unnest(generate_series(
                    growing.changed_on, coalesce(growing.holds_until, bounds.last_on), interval 1 day
                )) as date) as changed_on
            from growing
            cross join bounds
        )
    {% endif %}
{%- endmacro %}


{% macro rolled_columns(key, sums, lows, highs) -%}
    {#- The columns of such a state, in one order whatever the run. -#}
    {{ key }},
    changed_on as as_of,
    {% for measure, windows in sums.items() %}
        {% for window in windows %}
            {{ measured(measure, window) }},
        {% endfor %}
    {% endfor %}
    {{ (lows + highs) | join(',\n    ') }}
{%- endmacro %}


{% macro newcomers(versions, key) -%}
    {#- Keys known by what was said of them, from the midnight after. -#}
    select
        {{ key }},
        cast(min(holds_from) as date) + 1 as changed_on
    from {{ versions }}
    group by {{ key }}
    {% if carries_on() %}
        having cast(min(holds_from) as date) + 1 >= {{ first_day() }}
    {% endif %}
{%- endmacro %}
