-- A condition of the template is no level of the SQL.
-- noqa: disable=LT02
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

read as (
    select * from events
    where
        event_date < {{ last_day() }}
        {% if resumes() %}
            and (event_date >= {{ first_day() }} - 1 or received_instant >= {{ since }})
        {% endif %}
        {% if resumes() and asked('late_days') is not string %}
            -- On its own, for only so does it choose the files.
            and (event_date >= {{ first_day() }} - 1 or event_date in ({{ late_days() }}))
        {% endif %}
),

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
