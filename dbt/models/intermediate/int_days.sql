-- The midnights to build: one row per as_of, between the vars as_of_from and as_of_to.

with

known as (
    select
        min(known_on) as first_on,
        max(known_on) as last_on
    from {{ ref('int_known_events') }}
),

bounds as (
    select
        coalesce(cast(nullif('{{ asked("as_of_from") }}', '') as date), first_on) as first_on,
        coalesce(cast(nullif('{{ asked("as_of_to") }}', '') as date), last_on) as last_on
    from known
),

days as (
    select unnest(generate_series(cast(first_on as timestamp), cast(last_on as timestamp), interval 1 day)) as as_of
    from bounds
)

select
    as_of,
    cast(as_of as date) as as_of_date
from days
