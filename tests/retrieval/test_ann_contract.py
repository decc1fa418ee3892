"""A model behind an index keeps the contract of a retriever."""

from ann_world import settings
from retriever_contract import RetrieverContract

from pipelines.retrieval import lineup
from pipelines.retrieval.ann.indexed import Indexed
from pipelines.retrieval.protocol import Retriever


class TestInLists(RetrieverContract):
    source, by_blas = "bpr", True

    def make(self) -> Retriever:
        return Indexed(lineup.make(self.source), settings("ivf"))


class TestInAGraph(RetrieverContract):
    source, by_blas = "bpr", True

    def make(self) -> Retriever:
        return Indexed(lineup.make(self.source), settings("hnsw"))


class TestInHalves(RetrieverContract):
    source, by_blas = "bpr", True

    def make(self) -> Retriever:
        return Indexed(lineup.make(self.source), settings("scan"))


class TestOneByOne(RetrieverContract):
    source, by_blas = "als", True

    def make(self) -> Retriever:
        return Indexed(lineup.make(self.source), settings("auto"))
