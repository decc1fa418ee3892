"""Every source of the line-up keeps the contract of a retriever."""

from retriever_contract import RetrieverContract

from pipelines import columns as c
from pipelines.retrieval import lineup
from pipelines.retrieval.protocol import Retriever


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
    source, by_blas = "als", True


class TestRepeat(RetrieverContract):
    source, proposes_seen_only = "repeat", True


class TestGraphFilter(RetrieverContract):
    source = "graph_filter"


class TestUserKnn(RetrieverContract):
    source = "user_knn"


class TestSessionKnn(RetrieverContract):
    """The worlds' events lie hours apart, so a session may last."""

    source = "session_knn"

    def make(self) -> Retriever:
        return lineup.make(self.source, {"gap_minutes": 1440.0})


class TestPureSvd(RetrieverContract):
    source, by_blas = "pure_svd", True


class TestNmf(RetrieverContract):
    source, by_blas = "nmf", True


class TestBpr(RetrieverContract):
    source, by_blas = "bpr", True


class TestViewedTogether(RetrieverContract):
    source = "viewed_together"

    def make(self) -> Retriever:
        return lineup.make(self.source, {"gap_minutes": 1440.0})


class TestBoughtTogether(RetrieverContract):
    """The worlds hold views alone, so it is told to pair them."""

    source = "bought_together"

    def make(self) -> Retriever:
        return lineup.make(self.source, {"event_type": c.VIEW, "gap_minutes": 1440.0})


class TestContent(RetrieverContract):
    source, proposes_new = "content", True


class TestTrending(RetrieverContract):
    source, personal = "trending", False


class TestPopularBySegment(RetrieverContract):
    source, personal = "popular_by_segment", False


def test_no_source_of_the_line_up_is_left_untested():
    tested = {contract.source for contract in RetrieverContract.__subclasses__()}
    assert tested == set(lineup.SOURCES)
    assert len(tested) >= 7
