-- Brands are many, and one look says little: a pair begins with the second event.
with

{{ affinity(ref('int_user_brand_days'), 'brand', least=2) }}
