with

source as (
    select * from {{ source('lake', 'users') }}
),

typed as (
    select
        user_id,
        country,
        age_band,
        {{ utc('signed_up_at') }} as signed_up_at,
        {{ utc('valid_from') }} as valid_from
    from source
)

select * from typed
