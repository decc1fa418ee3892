-- A lambda's parameter is no table.
-- noqa: disable=RF01,RF03
with

days as (
    select * from {{ ref('int_days') }}
),

-- Newest first, none older than the session's days before the newest.
recent as (
    select
        sessions.user_id,
        days.as_of,
        list_filter(
            sessions.events, lambda e: e.event_at >= sessions.events[1].event_at - interval {{ session_days() }} day
        ) as events
    from {{ ref('int_user_session') }} as sessions
    inner join days on sessions.known_on = days.as_of_date
    where sessions.events[1].event_at >= days.as_of - interval {{ session_days() }} day
),

weighed as (
    select
        user_id,
        as_of,
        events,
        list_transform(
            list_filter(events, lambda e: e.category is not null),
            lambda e: struct_pack(category := e.category, weight := {{ session_weight('e', 'events[1]') }})
        ) as weights,
        -- The visit ends, going back, before the first long pause.
        coalesce(
            list_position(
                list_transform(
                    list_zip(events, events[2:]),
                    lambda pair: pair[1].event_at - pair[2].event_at > interval {{ session_gap_minutes() }} minute
                ),
                true
            ),
            len(events)
        ) as session_events
    from recent
),

-- Sums run from the newest event to the oldest, here and in the stream: the same doubles to the last bit.
affine as (
    select
        user_id,
        as_of,
        events,
        session_events,
        list_transform(
            list_distinct(list_transform(weights, lambda w: w.category)),
            lambda shelf: struct_pack(
                minus := -list_sum(list_transform(weights, lambda w: if(w.category = shelf, w.weight, 0.0)))
                / list_sum(list_transform(weights, lambda w: w.weight)),
                category := shelf
            )
        ) as shelves
    from weighed
),

-- Best first, by name where equal.
ordered as (
    select
        user_id,
        as_of,
        events,
        session_events,
        list_transform(
            list_sort(shelves)[1:10], lambda shelf: struct_pack(affinity := -shelf.minus, category := shelf.category)
        ) as shelves
    from affine
),

final as (
    select
        user_id,
        as_of,
        list_transform(events, lambda e: e.item_id) as last_item_ids,
        list_transform(events, lambda e: e.event_type) as last_event_types,
        list_transform(events, lambda e: e.event_id) as last_event_ids,
        list_transform(events, lambda e: epoch_us(e.event_at)) as last_event_us,
        cast(session_events as integer) as session_events,
        (epoch_us(events[1].event_at) - epoch_us(events[session_events].event_at)) / 1000000.0 as session_seconds,
        case when len(shelves) > 0 then list_transform(shelves, lambda s: s.category) end as categories,
        case when len(shelves) > 0 then list_transform(shelves, lambda s: s.affinity) end as category_affinities,
        shelves[1].category as top_category,
        shelves[1].affinity as top_category_affinity,
        as_of as available_at
    from ordered
)

select * from final
