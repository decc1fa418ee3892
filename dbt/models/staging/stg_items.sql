with

source as (
    select * from {{ source('lake', 'items') }}
),

typed as (
    select
        item_id,
        title,
        category,
        brand,
        price,
        available as is_available,
        {{ utc('created_at') }} as created_at,
        {{ utc('valid_from') }} as valid_from
    from source
)

select * from typed
