"""What rows say of themselves, as words."""

import pyarrow as pa

from pipelines import columns as c
from pipelines import tables
from pipelines.retrieval.neural import tokens


def test_whole_values_words_attributes_and_the_price_by_its_doubling_are_tokens():
    attributes = pa.array([[("year", "1995"), ("genres", "comedy"), ("mood", "")], None], tables.ITEMS.field(c.ATTRIBUTES).type)
    known = pa.table({c.TITLE: ["Toy Story toy", None], c.BRAND: ["acme", None], c.PRICE: [40.0, 0.0], c.ATTRIBUTES: attributes})
    assert tokens.described(known, 2) == [["brand=acme", "title:toy", "title:story", "genres=comedy", "year=1995", "price=2^5"], []]
    assert tokens.described(None, 1) == [[]]
