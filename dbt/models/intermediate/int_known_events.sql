-- The events that become known in this run, each with the first midnight at which a feature row may use it.
-- A run that resumes reads the days it builds and, of earlier ones, those that hold an event received since.
{% set since = "timestamptz '" ~ asked('as_of_from') ~ " 00:00:00+00' - interval 1 day" %}

with

events as (
    select * from {{ ref('stg_events') }}
),

versions as (
    select * from {{ ref('int_item_versions') }}
),

{% if resumes() %}
    on_time as (
        select * from events
        where event_date between {{ first_day() }} - 1 and {{ last_day() }} - 1
    ),

    late as (
        select * from events
        where
            event_date < {{ first_day() }} - 1
            {% if asked('late_days') is not string %}
                and event_date in ({{ late_days() }})
            {% endif %}
            and received_instant >= {{ since }}
    ),

    read as (
        select * from on_time
        union all
        select * from late
    ),
{% else %}
    read as (
        select * from events
        where event_date < {{ last_day() }}
    ),
{% endif %}

dated as (
    select
        *,
        cast(greatest(event_at, received_at) as date) + 1 as known_on
    from read
),

categorised as (
    select
        dated.event_id,
        dated.user_id,
        dated.item_id,
        versions.category,
        versions.brand,
        dated.event_type,
        dated.session_id,
        lower(dated.device) as device,
        dated.event_value,
        dated.quantity,
        dated.event_at,
        dated.event_date,
        dated.known_on
    from dated
    -- The category and the brand that the item was known to have when the event became known.
    left join versions
        on
            dated.item_id = versions.item_id
            and cast(dated.known_on as timestamp) > versions.holds_from
            and cast(dated.known_on as timestamp) <= versions.holds_until
    where dated.known_on <= {{ last_day() }}
)

select * from categorised
