with

source as (
    {% if lake_holds('items') %}
        select * from {{ source('lake', 'items') }}
    {% else %}
        select
            cast(null as varchar) as item_id,
            cast(null as varchar) as title,
            cast(null as varchar) as category,
            cast(null as varchar) as brand,
            cast(null as double) as price,
            cast(null as boolean) as available,
            cast(null as timestamptz) as created_at,
            cast(null as timestamptz) as valid_from,
            cast(null as timestamptz) as received_at
        where false
    {% endif %}
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
        {{ utc('valid_from') }} as valid_from,
        {{ utc('received_at') }} as received_at
    from source
)

select * from typed
