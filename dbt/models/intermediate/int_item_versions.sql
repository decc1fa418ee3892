-- What was known of an item, from the moment it was known.

with

{{ known_versions(ref('stg_items'), 'item_id', ['category', 'brand', 'price', 'is_available', 'created_at']) }}
