with

source as (
    {% if lake_holds('users') %}
        select * from {{ source('lake', 'users') }}
    {% else %}
        select
            cast(null as varchar) as user_id,
            cast(null as varchar) as country,
            cast(null as varchar) as age_band,
            cast(null as timestamptz) as signed_up_at,
            cast(null as timestamptz) as valid_from,
            cast(null as timestamptz) as received_at
        where false
    {% endif %}
),

typed as (
    select
        user_id,
        country,
        age_band,
        {{ utc('signed_up_at') }} as signed_up_at,
        {{ utc('valid_from') }} as valid_from,
        {{ utc('received_at') }} as received_at
    from source
)

select * from typed
