{{ config(materialized='incremental', incremental_strategy='days', unique_key='known_on') }}
-- The newest events of a user, on the days on which something became known of them: the memory of the mart user_session.

with

events as (
    select * from {{ ref('int_known_events') }}
),

versions as (
    select * from {{ ref('int_item_versions') }}
),

-- An event is on the shelf that its item was known to be on when it happened.
categorised as (
    select
        events.user_id,
        events.known_on,
        events.event_at,
        events.event_id,
        events.item_id,
        events.event_type,
        versions.category
    from events
    asof left join versions on events.item_id = versions.item_id and events.event_at >= versions.holds_from
    {% if carries_on() %}
        where events.known_on >= {{ first_day() }}
    {% endif %}
),

news as (
    select
        user_id,
        known_on,
        max(struct_pack(event_at, event_id, item_id, event_type, category), {{ session_items() }}) as events
    from categorised
    group by all
),

told as (
    select * from news
    {% if carries_on() %}
        union all
        (
            select
                earlier.user_id,
                earlier.known_on,
                earlier.events
            from {{ this }} as earlier
            where
                earlier.known_on < {{ first_day() }}
                and earlier.known_on >= {{ first_day() }} - {{ 2 * session_days() | int }}
                and earlier.user_id in (select fresh.user_id from news as fresh)
            qualify row_number() over (partition by earlier.user_id order by earlier.known_on desc) = 1
        )
    {% endif %}
)

-- What a day remembers of the days before it; what is older than the reach of the mart's row no longer matters.
select
    news.user_id,
    news.known_on,
    list_reverse_sort(flatten(list(told.events)))[1:{{ session_items() }}] as events
from news
inner join told
    on
        news.user_id = told.user_id
        and news.known_on >= told.known_on
        and news.known_on <= told.known_on + {{ 2 * session_days() | int }}
group by all
