"""What features describe: the entities and their join keys."""

from feast import Entity, ValueType

user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING, description="Somebody who views and buys.")
item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.STRING, description="Something the shop offers.")
other_item = Entity(
    name="other_item", join_keys=["other_item_id"], value_type=ValueType.STRING, description="An item beside another, in a pair of items."
)
category = Entity(
    name="category", join_keys=["category"], value_type=ValueType.STRING, description="A shelf of the shop, as the items table names it."
)
brand = Entity(name="brand", join_keys=["brand"], value_type=ValueType.STRING, description="A maker of items, as the items table names it.")
