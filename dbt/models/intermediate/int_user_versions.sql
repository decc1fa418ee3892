-- What was known of a user, from the moment it was known.

with

{{ known_versions(ref('stg_users'), 'user_id', ['country', 'age_band', 'signed_up_at']) }}
