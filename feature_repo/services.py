"""What a line of models asks, as one name: a model names its service and never lists features itself."""

from feast import FeatureService
from views import item_daily, item_pairs_daily, user_brand_daily, user_category_daily, user_daily

ranking_v1 = FeatureService(
    name="ranking_v1",
    features=[user_daily, item_daily, user_category_daily, user_brand_daily],
    description="Features of the ranker: of the user, of the item, and of the user in the item's category and with its brand.",
    owner="ranking",
)

pairs_v1 = FeatureService(
    name="pairs_v1",
    features=[item_pairs_daily],
    description="What is bought or viewed together with an item: `bought together` and `similar`.",
    owner="ranking",
)
