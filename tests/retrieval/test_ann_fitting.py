"""An index on its way from the fit to the bundle: published beside its source, and what serves is what was judged."""

import json

import pytest
from ann_world import clustered, model, settings, visitors
from retriever_contract import everyone
from test_fitting import AS_OF, shop

from pipelines import cycle, lake, publish
from pipelines.config import Home
from pipelines.datasets import universe
from pipelines.datasets.interactions import histories
from pipelines.errors import StateError
from pipelines.ranking.two_stage import BLEND, TwoStage
from pipelines.retrieval import fitting, lineup
from pipelines.retrieval.ann.indexed import Indexed


@pytest.fixture
def run_home(home: Home) -> Home:
    home.root.mkdir(parents=True)
    lake.land_tables(home, events=shop())
    return home


def configured(home, index):
    (home.root / "reloop.toml").write_text(
        f'[retrieval]\nsources = ["bpr"]\nk_per_source = 10\n[retrieval.index]\n{index}\n[training]\nmax_users_per_window = 25\n'
    )


def test_the_index_is_published_beside_its_source_and_what_is_loaded_answers_as_judged(run_home):
    configured(run_home, 'kind = "ivf"')
    fitting.fit(run_home, AS_OF, "bpr")
    folder = fitting.folder(run_home, AS_OF, "bpr")
    assert {"index.json", "index.faiss", "index.npz"} <= set(publish.manifest(folder, verify=True).files)
    loaded = lineup.load(folder)
    assert isinstance(loaded, Indexed)
    world = universe.load(run_home, AS_OF)
    known = world.interactions(world.fold("judge").cutoff, fitting.config.load(run_home).training)
    again = loaded.retrieve(histories(known, world.labels("judge").user_ids), 10, exclude_seen=False)
    assert (again.item == fitting.candidates(run_home, AS_OF, "bpr", "judge", world.digest).item).all()
    (record,) = cycle.records(run_home, AS_OF, "retrieval")
    assert record["index"]["kind"] == "ivf"
    assert record["index"]["recall_at_100"] >= 0.98
    assert json.loads((folder / "index.json").read_text())["recall_at_100"] == record["index"]["recall_at_100"]
    before = publish.manifest(folder).digest
    fitting.fit(run_home, AS_OF, "bpr")
    assert publish.manifest(folder).digest == before, "a rerun ends in the same bytes"


def test_a_small_catalogue_gets_the_candidates_it_got_without_an_index(run_home):
    found = []
    for index in ('kind = "none"', 'kind = "auto"'):
        configured(run_home, index)
        fitting.fit(run_home, AS_OF, "bpr")
        found.append(fitting.candidates(run_home, AS_OF, "bpr", "judge", universe.load(run_home, AS_OF).digest))
    assert (found[0].item == found[1].item).all()
    assert (found[0].score == found[1].score).all()
    facts = json.loads((fitting.folder(run_home, AS_OF, "bpr") / "index.json").read_text())
    assert (facts["plan"]["kind"], facts["recall_at_100"], facts["files"]) == ("flat", 1.0, {})


def test_a_build_that_finds_too_little_publishes_nothing(run_home):
    configured(run_home, 'kind = "auto"\nflat_below = 1\nhnsw_below = 1')
    with pytest.raises(StateError, match="index of Bpr: recall@100"):
        fitting.fit(run_home, AS_OF, "bpr")
    assert not fitting.folder(run_home, AS_OF, "bpr").exists()


def test_a_two_stage_model_carries_the_index_and_serves_by_it(tmp_path):
    users = visitors(300)
    indexed = Indexed(model(clustered(300)), settings("ivf")).over(users)
    served = TwoStage(users.item_ids, {"bpr": indexed}, None, k_per_source=20, k_blend=20, exclude_seen=True, serves=BLEND)
    served.save(tmp_path / "model")
    loaded = TwoStage.load(tmp_path / "model")
    assert isinstance(loaded.retrievers["bpr"], Indexed)
    before, after = (one.propose(everyone(users)) for one in (served, loaded))
    assert len(before.item) > 1000
    assert (before.item == after.item).all()
    (tmp_path / "model" / "retrieval" / "bpr" / "index.faiss").write_bytes(b"")
    with pytest.raises(StateError):
        TwoStage.load(tmp_path / "model")
