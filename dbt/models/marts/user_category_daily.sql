with

{{ affinity(ref('int_user_category_days'), 'category') }}
