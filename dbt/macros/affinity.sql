-- A loop of the template is no level of the SQL.
-- noqa: disable=LT02

{% macro affinity(facet_days, facet, least=1) -%}
    {#- How much a user has lately had to do with each category, or brand: one row per user, facet and day of the run.

        An event counts from the day it is known until it is 30 days old: it arrives once and leaves once. Adding
        arrivals and leavings up, and writing a row for each day in between, is a third of the work of summing 30
        days anew for every day; a pair is in no state of its own, for all of it has left after the days read. A pair that has fallen to zero is written for as many days more as a lookup reaches
        back (the ttl of the feature view), so that a zero is seen before the pair is gone until the next event.
        least: events below which a pair counts as fallen. -#}
    days as (
        select
            min(as_of_date) as first_on,
            max(as_of_date) as last_on
        from {{ ref('int_days') }}
    ),

    -- What has left the window and the days after it on the first day of the run no longer matters.
    pair_days as (
        select *
        from {{ facet_days }}
        where
            known_on <= {{ last_day() }}
            {% if asked('as_of_from') %}
                and event_date >= {{ first_day() }} - 30 - {{ var('ttl_days') }}
            {% endif %}
    ),

    coverage as (
        select * from {{ ref('int_coverage') }}
    ),

    totals as (
        {{ built(ref('int_user_state'), ['user_id', facet ~ '_events_30d']) }}
    ),

    changes as (
        select
            user_id,
            {{ facet }},
            known_on as changed_on,
            events,
            add_to_carts,
            purchases,
            last_event_at
        from pair_days
        union all
        select
            user_id,
            {{ facet }},
            greatest(known_on, event_date + 31) as changed_on,
            -events as events,
            -add_to_carts as add_to_carts,
            -purchases as purchases,
            null as last_event_at
        from pair_days
    ),

    netted as (
        select
            user_id,
            {{ facet }},
            changed_on,
            sum(events) as events,
            sum(add_to_carts) as add_to_carts,
            sum(purchases) as purchases,
            max(last_event_at) as last_event_at
        from changes
        where changed_on <= {{ last_day() }}
        group by all
    ),

    states as (
        select
            user_id,
            {{ facet }},
            changed_on as holds_from,
            lead(changed_on, 1, date '9999-12-31') over growing - 1 as holds_until,
            cast(sum(events) over growing as integer) as events_30d,
            cast(sum(add_to_carts) over growing as integer) as add_to_carts_30d,
            cast(sum(purchases) over growing as integer) as purchases_30d,
            max(last_event_at) over growing as last_event_at
        from netted
        window growing as (partition by user_id, {{ facet }} order by changed_on)
    ),

    alive as (
        select
            *,
            max(case when events_30d >= {{ least }} then holds_until end) over (
                partition by user_id, {{ facet }} order by holds_from
            ) as alive_until
        from states
    ),

    daily as (
        select
            alive.user_id,
            alive.{{ facet }},
            alive.events_30d,
            alive.add_to_carts_30d,
            alive.purchases_30d,
            alive.last_event_at,
            cast(unnest(generate_series(
                greatest(alive.holds_from, days.first_on),
                least(alive.holds_until, alive.alive_until + {{ var('ttl_days') }}, days.last_on),
                interval 1 day
            )) as timestamp) as as_of
        from alive
        cross join days
        where
            alive.holds_until >= days.first_on
            and alive.alive_until + {{ var('ttl_days') }} >= days.first_on
    ),

    final as (
        select
            daily.user_id,
            daily.{{ facet }},
            daily.as_of,
            daily.events_30d,
            case when coverage.add_to_carts_known_on <= daily.as_of then daily.add_to_carts_30d end as add_to_carts_30d,
            case when coverage.purchases_known_on <= daily.as_of then daily.purchases_30d end as purchases_30d,
            daily.events_30d / cast(nullif(totals.{{ facet }}_events_30d, 0) as double) as share_of_events_30d,
            {{ days_before('daily.last_event_at', 'daily.as_of') }} as days_since_last_event,
            daily.as_of as available_at
        from daily
        inner join totals on daily.user_id = totals.user_id and daily.as_of = totals.as_of
        cross join coverage
    )

    select * from final
{%- endmacro %}


{% macro concentration(affinities, facet, plural, least=1) -%}
    {#- How a user's events of 30 days spread over categories, or brands. -#}
    select
        user_id,
        as_of,
        count(*) as distinct_{{ plural }}_30d,
        max(share_of_events_30d) as top_{{ facet }}_share_30d,
        -- Squares of integers: the same sum in any order.
        cast(sum(cast(events_30d as bigint) * events_30d) as double) / pow(cast(sum(events_30d) as double), 2) as {{ facet }}_concentration_30d
    from {{ affinities }}
    where events_30d >= {{ least }} and {{ built_days() }}
    group by all
{%- endmacro %}
