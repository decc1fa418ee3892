with

source as (
    select * from {{ source('lake', 'events') }}
),

typed as (
    select
        event_id,
        user_id,
        item_id,
        event_type,
        session_id,
        device,
        request_id,
        {{ utc('event_at') }} as event_at,
        {{ utc('received_at') }} as received_at,
        -- As the lake keeps them: a condition on these skips files and row groups.
        event_date,
        received_at as received_instant,
        -- Decimals add up to the same number in any order, doubles do not.
        try_cast(value as decimal(18, 4)) as event_value,
        try_cast(quantity as decimal(18, 4)) as quantity
    from source
)

select * from typed
