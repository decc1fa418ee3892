-- A lambda's parameter is no table.
-- noqa: disable=RF01,RF03
{%- set window_us = session_days() | int * 86400000000 %}
with

news as (
    select * from {{ ref('int_session_events') }}
    where
        known_on <= {{ last_day() }}
        {% if asked('as_of_from') %}
            and known_on >= {{ first_day() }}
        {% endif %}
),

{% if asked('as_of_from') %}
    earlier as (
        select *
        from {{ ref('int_session_events') }}
        where
            known_on < {{ first_day() }}
            and event_at >= {{ first_day() }} - {{ 2 * session_days() | int }}
            and user_id in (select news.user_id from news)
    ),

    reach as (
        select
            user_id,
            list_min(max(event_at, {{ session_items() }})) as reached_at
        from earlier
        group by all
    ),

    -- Of what was known before, the newest events of those users: no row of this run remembers an older one.
    remembered as (
        select earlier.*
        from earlier
        inner join reach on earlier.user_id = reach.user_id and earlier.event_at >= reach.reached_at
    ),
{% endif %}

events as (
    select * from news
    {% if asked('as_of_from') %}
        union all by name
        select * from remembered
    {% endif %}
),

-- Newest first.
listed as (
    select
        user_id,
        list_reverse_sort(list(struct_pack(
            happened_us := epoch_us(event_at), event_id, known_on, item_id, event_type, category
        ))) as events
    from events
    group by all
),

-- A list a column: a day's slice of it is then a matter of two numbers.
memories as (
    select
        user_id,
        list_transform(events, lambda e: e.happened_us) as happened_us,
        list_transform(events, lambda e: e.event_id) as event_ids,
        list_transform(events, lambda e: e.known_on) as known_ons,
        list_transform(events, lambda e: e.item_id) as item_ids,
        list_transform(events, lambda e: e.event_type) as event_types,
        list_transform(events, lambda e: e.category) as categories
    from listed
),

places as (
    select
        user_id,
        unnest(known_ons) as known_on,
        unnest(range(1, len(known_ons) + 1)) as place
    from memories
),

arrived as (
    select
        user_id,
        known_on,
        count(*) as events,
        min(place) as newest
    from places
    group by all
),

-- How many events are known on a day, and the place of the newest of them.
grown as (
    select
        user_id,
        known_on,
        cast(sum(events) over so_far as bigint) as told,
        min(newest) over so_far as newest
    from arrived
    window so_far as (partition by user_id order by known_on)
),

user_days as (
    select
        user_id,
        list(struct_pack(known_on, newest, told)) as midnights
    from grown
    {% if asked('as_of_from') %}
        where known_on >= {{ first_day() }}
    {% endif %}
    group by all
),

daily as (
    select
        memories.*,
        unnest(user_days.midnights) as midnight
    from memories
    inner join user_days on memories.user_id = user_days.user_id
),

-- None older than the session's days before the newest, and no more than it remembers: of the places from the newest
-- on, as many more than that are looked at as there are events among them that are not yet known.
picked as (
    select
        *,
        list_filter(
            range(midnight.newest, least(len(happened_us), len(happened_us) - midnight.told + {{ session_items() }}) + 1),
            lambda place: known_ons[place] <= midnight.known_on
            and happened_us[place] >= happened_us[midnight.newest] - {{ window_us }}
        )[1:{{ session_items() }}] as picks
    from daily
    where happened_us[midnight.newest] >= epoch_us(cast(midnight.known_on as timestamp)) - {{ window_us }}
),

recent as (
    select
        user_id,
        cast(midnight.known_on as timestamp) as as_of,
        list_select(happened_us, picks) as happened_us,
        list_select(event_ids, picks) as event_ids,
        list_select(item_ids, picks) as item_ids,
        list_select(event_types, picks) as event_types,
        list_select(categories, picks) as categories
    from picked
),

weighed as (
    select
        *,
        list_transform(
            list_zip(categories, event_types, happened_us),
            lambda e: if(e[1] is null, 0.0, {{ session_weight('e[2]', 'e[3]', 'happened_us[1]') }})
        ) as weights,
        -- The visit ends, going back, before the first long pause.
        coalesce(
            list_position(
                list_transform(
                    range(1, len(happened_us)),
                    lambda place: happened_us[place] - happened_us[place + 1] > {{ session_gap_minutes() | int * 60000000 }}
                ),
                true
            ),
            len(happened_us)
        ) as session_events
    from recent
),

-- Sums run from the newest event to the oldest, here and in the stream: the same doubles to the last bit. Best first, by name where equal.
affine as (
    select
        *,
        list_sort(list_transform(
            list_distinct(categories),
            lambda shelf: struct_pack(
                minus := -list_sum(list_where(weights, list_transform(categories, lambda own: own is not distinct from shelf)))
                / list_sum(weights),
                category := shelf
            )
        ))[1:10] as shelves
    from weighed
),

final as (
    select
        user_id,
        as_of,
        item_ids as last_item_ids,
        event_types as last_event_types,
        event_ids as last_event_ids,
        happened_us as last_event_us,
        cast(session_events as integer) as session_events,
        (happened_us[1] - happened_us[session_events]) / 1000000.0 as session_seconds,
        case when len(shelves) > 0 then list_transform(shelves, lambda shelf: shelf.category) end as categories,
        case when len(shelves) > 0 then list_transform(shelves, lambda shelf: -shelf.minus) end as category_affinities,
        shelves[1].category as top_category,
        -shelves[1].minus as top_category_affinity,
        as_of as available_at
    from affine
)

select * from final
