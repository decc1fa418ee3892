"""Every source of the line-up keeps the contract of a retriever."""

from retriever_contract import RetrieverContract

from pipelines.retrieval import lineup


class TestPopular(RetrieverContract):
    source, personal = "popular", False


class TestPopular7d(RetrieverContract):
    source, personal = "popular_7d", False


class TestItemKnn(RetrieverContract):
    source = "item_knn"


class TestSequenceRules(RetrieverContract):
    source = "sequence_rules"


class TestEase(RetrieverContract):
    source = "ease"


class TestAls(RetrieverContract):
    source = "als"


class TestRepeat(RetrieverContract):
    source, proposes_seen_only = "repeat", True


class TestGraphFilter(RetrieverContract):
    source = "graph_filter"


class TestUserKnn(RetrieverContract):
    source = "user_knn"


def test_no_source_of_the_line_up_is_left_untested():
    tested = {contract.source for contract in RetrieverContract.__subclasses__()}
    assert tested == set(lineup.SOURCES)
    assert len(tested) >= 7
