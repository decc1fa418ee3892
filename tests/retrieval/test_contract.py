"""Every source of the line-up keeps the contract of a retriever."""

from dataclasses import replace
from importlib.util import find_spec
from shutil import which
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
from retriever_contract import DAY, NOW, RetrieverContract, assert_well_formed, checkerboard, everyone, random_world, world

from pipelines import columns as c
from pipelines.datasets.interactions import Floats, Interactions
from pipelines.retrieval import lineup, spark_als, spark_job
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


@pytest.mark.skipif(find_spec("pyspark") is None, reason="pyspark is not installed (extra spark); `make test-spark` installs it")
@pytest.mark.skipif(which("java") is None, reason="no java (Debian: apt-get install openjdk-17-jre-headless)")
class TestSparkAls(RetrieverContract):
    source, by_blas = "spark_als", True

    @pytest.fixture(autouse=True)
    def _one_jvm(self, monkeypatch) -> None:
        """Run the job itself here, a session a fit, because a JVM a fit is most of what a small fit costs (`test_spark_als` has those)."""
        monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
        monkeypatch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
        monkeypatch.setattr(spark_als, "_run", lambda folder, loopback: spark_job.main(folder))

    def make(self) -> Retriever:
        return lineup.make(self.source, {"n_factors": 8, "n_epochs": 4, "n_blocks": 1, "regularization": 0.01})


class TestRepeat(RetrieverContract):
    source, proposes_seen_only = "repeat", True


class TestGraphFilter(RetrieverContract):
    source = "graph_filter"


class TestGraphFilterWithLowPass(RetrieverContract):
    source, by_blas = "graph_filter", True

    def make(self) -> Retriever:
        return lineup.make(self.source, {"n_factors": 4})


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


class TestTextEmbedding(RetrieverContract):
    """On its checkerboard every item has a title of its own: rounding would break ties between items described alike."""

    source, by_blas, proposes_new = "text_embedding", True, True
    encoder: ClassVar[str]

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _encoder(cls, tmp_path_factory) -> None:
        for needed in ("onnxruntime", "tokenizers", "onnx"):
            pytest.importorskip(needed, reason=f"{needed} is not installed (extras text and dev)")
        import tiny_encoder

        cls.encoder = str(tiny_encoder.drawn(tmp_path_factory.mktemp("encoder")))

    def make(self) -> Retriever:
        return lineup.make(self.source, {"encoder": self.encoder})

    def checkerboard(self) -> Interactions:
        plain = checkerboard()
        title = pa.array([f"{('ebony black', 'ivory white')[item % 2]} n{item}" for item in range(20)])
        return replace(plain, items=plain.items.set_column(0, plain.items.schema.field(0), title))


class TestTrending(RetrieverContract):
    source, personal = "trending", False


class TestPopularBySegment(RetrieverContract):
    source, personal = "popular_by_segment", False


class TestPopularByProfile(RetrieverContract):
    source, personal = "popular_by_profile", False


class TestColdUsers(RetrieverContract):
    """Here everybody counts as little known, else nobody of the worlds would be answered."""

    source, personal = "cold_users", False

    def make(self) -> Retriever:
        return lineup.make(self.source, {"max_events": 1000})


class TestColdItems(RetrieverContract):
    """On its checkerboard the first four items are new: nobody met them, and they look like the others of their colour.

    Everybody strays once, or the other colour's scores would be zero but for rounding.
    """

    source, by_blas, proposes_new = "cold_items", True, True

    def make(self) -> Retriever:
        return lineup.make(self.source, {"max_events": 3})

    def checkerboard(self) -> Interactions:
        plain = checkerboard()
        met = plain.item >= 4
        events = zip(plain.user[met], plain.item[met], (NOW - plain.at[met]) / DAY, plain.weight[met], strict=True)
        strayed = [(user, 4 + (user // 2 * 2 + 1 - user % 2) % 16, 9.0, 1.0) for user in range(40)]
        return world([*((int(user), int(item), float(age), float(weight)) for user, item, age, weight in events), *strayed], 40, 20)

    def test_on_the_checkerboard_every_user_gets_the_missing_item_of_its_colour(self) -> None:
        interactions = self.checkerboard()
        found = self.make().fit(interactions).retrieve(everyone(interactions), 3, exclude_seen=True)
        assert_well_formed(found, 40, 3, 20)
        assert found.item[:, :2].tolist() == [[user % 2, user % 2 + 2] for user in range(40)]

    def test_on_the_checkerboard_seen_items_of_the_own_colour_come_first(self) -> None:
        """What was seen is not new, so it is not among them."""
        interactions = self.checkerboard()
        found = self.make().fit(interactions).retrieve(everyone(interactions), 9, exclude_seen=False)
        assert (np.sort(found.item[:, :4], axis=1) == np.arange(4)).all()
        assert (found.item[:, 4:] == -1).all()


class TestBiasedMf(RetrieverContract):
    """On the checkerboard everybody rates the own colour about 5 and the other about 1; elsewhere a rating is the weight and one."""

    source, by_blas = "biased_mf", True

    def checkerboard(self) -> Interactions:
        liked = checkerboard()
        poor = [(user, item, 2.0, 0.0) for user in range(40) for item in range(20) if (user + item) % 2 and item != (user + 5) % 20]
        events = zip(liked.user, liked.item, (NOW - liked.at) / DAY, liked.weight, strict=True)
        both = world([*((int(u), int(i), float(age), float(w)) for u, i, age, w in events), *poor], 40, 20)
        return rated(both, 1 + 4 * both.weight - both.item / 40)  # no ties, which rounding would break

    def random_world(self, seed: int) -> Interactions:
        drawn = random_world(seed)
        return rated(drawn, 1 + drawn.weight)


class TestSvdPp(TestBiasedMf):
    source, by_blas = "svdpp", True


def rated(interactions: Interactions, value: Floats) -> Interactions:
    """Return the same events as ratings."""
    kind = np.full(len(value), c.EVENT_TYPES.index(c.RATING), dtype=np.int8)
    return replace(interactions, event_type=kind, value=value.astype(np.float32))


FEW_WORLDS = (3, 5, 7)  # those that other tests of the contract fit as well
SMALL = {"n_factors": 16, "learning_rate": 1e-2, "warmup": 1, "n_epochs": 20, "patience": 20, "batch_size": 16}


class SequenceContract(RetrieverContract):
    """On the checkerboard of a model of sequences, the order of a user's steps says nothing."""

    worlds = FEW_WORLDS
    knobs: ClassVar[dict[str, Any]] = SMALL | {"decay": 1.0, "max_history": 10, "n_negatives": 0}
    by_blas = True

    def make(self) -> Retriever:
        return lineup.make(self.source, self.knobs)

    def checkerboard(self) -> Interactions:
        plain, rng = checkerboard(), np.random.default_rng(0)
        return world([(int(user), int(item), 1 + rng.random(), 1.0) for user, item in zip(plain.user, plain.item, strict=True)], 40, 20)


class TestSasRec(SequenceContract):
    source, knobs = "sasrec", SequenceContract.knobs | {"n_layers": 1, "n_heads": 1}


class TestGSasRec(SequenceContract):
    source, knobs = "gsasrec", SequenceContract.knobs | {"n_layers": 1, "n_heads": 1, "n_negatives": 16, "n_epochs": 60}


class TestGru4Rec(SequenceContract):
    source, knobs = "gru4rec", SequenceContract.knobs | {"n_hidden": 16}


class TestBert4Rec(SequenceContract):
    source, knobs = "bert4rec", SequenceContract.knobs | {"n_layers": 1, "n_heads": 1, "n_epochs": 40}


class TestTwoTower(RetrieverContract):
    source, by_blas = "two_tower", True
    worlds = FEW_WORLDS

    def make(self) -> Retriever:
        knobs = {"max_history": 10, "batch_size": 64, "n_epochs": 10, "n_negatives": 16, "n_pool": 16, "n_hard": 1}
        return lineup.make(self.source, SMALL | knobs)


class TestLightGcn(RetrieverContract):
    source, by_blas = "lightgcn", True
    worlds = FEW_WORLDS

    def make(self) -> Retriever:
        return lineup.make(self.source, SMALL | {"batch_size": 128, "n_negatives": 32})


class TestNeuMf(RetrieverContract):
    source, by_blas = "neumf", True
    worlds = FEW_WORLDS

    def make(self) -> Retriever:
        return lineup.make(self.source, SMALL | {"max_history": 10, "n_epochs": 30})


def test_no_source_of_the_line_up_is_left_untested():
    families = [*RetrieverContract.__subclasses__(), *SequenceContract.__subclasses__(), *TestBiasedMf.__subclasses__()]
    tested = {contract.source for contract in families if contract is not SequenceContract}
    assert tested == set(lineup.SOURCES)
    assert len(tested) >= 7
