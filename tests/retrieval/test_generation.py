"""Candidates for everybody: as if each user had asked alone, in parts that survive a kill, in the same bytes."""

import json
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pytest
from retriever_contract import everyone, random_world, strangers
from test_fitting import AS_OF, fit_all, run_home  # noqa: F401 - a fixture
from typer.testing import CliRunner

from pipelines import config, publish
from pipelines.cli import app
from pipelines.datasets import universe
from pipelines.datasets.interactions import histories
from pipelines.errors import StateError
from pipelines.model_settings import IndexSettings
from pipelines.retrieval import blend, generation, lineup, merging
from pipelines.retrieval.ann import keeping
from pipelines.retrieval.ann.indexed import Indexed
from pipelines.retrieval.generation import Wanted

WANTED = Wanted(k_per_source=5, k=8, exclude_seen=True)


@pytest.fixture(scope="module")
def shop():
    """Return interactions, two fitted sources and the histories of all users."""
    interactions = random_world(4)
    return interactions, {name: lineup.make(name).fit(interactions) for name in ("popular", "item_knn")}, everyone(interactions)


def blocks(known, size=7):
    return [known.rows(first, min(first + size, known.n_users)) for first in range(0, known.n_users, size)]


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@dataclass(frozen=True)
class Killed:
    """Yields some blocks and then dies, as a process that is killed does."""

    blocks: list
    after: int
    read: list = field(default_factory=list)

    def __iter__(self):
        yield from self.blocks[: self.after]
        raise KeyboardInterrupt


def test_every_user_gets_the_candidates_that_asking_for_all_at_once_gives(shop, tmp_path):
    _, sources, known = shop
    assert known.n_users > 14, "more than two blocks"
    made = generation.generate(tmp_path / "all", sources, blocks(known), WANTED, {})
    found = pa.concat_tables(generation.candidates(tmp_path / "all"))
    lists = {name: source.retrieve(known, 5, exclude_seen=True) for name, source in sources.items()}
    wanted = blend.tabulate(merging.merge(lists, 8), np.arange(known.n_users, dtype=np.int32))
    assert found.to_pandas().equals(wanted.to_pandas())
    assert made.facts["users"] == known.n_users
    assert made.facts["rows"] == found.num_rows > 0


@pytest.mark.parametrize("after", [0, 1, 2])
def test_killed_and_run_again_it_ends_in_the_same_bytes_and_asks_for_no_part_twice(shop, tmp_path, monkeypatch, after):
    _, sources, known = shop
    generation.generate(tmp_path / "whole", sources, blocks(known), WANTED, {})
    with pytest.raises(KeyboardInterrupt):
        generation.generate(tmp_path / "torn", sources, Killed(blocks(known), after), WANTED, {})
    with pytest.raises(StateError, match=r"no manifest\.json"):
        list(generation.candidates(tmp_path / "torn"))
    made = []
    part = generation._part
    monkeypatch.setattr(generation, "_part", lambda *arguments: made.append(1) or part(*arguments))
    generation.generate(tmp_path / "torn", sources, blocks(known), WANTED, {})
    assert len(made) == len(blocks(known)) - after
    assert bytes_of(tmp_path / "torn") == bytes_of(tmp_path / "whole")


def test_a_finished_generation_is_not_made_again(shop, tmp_path):
    _, sources, known = shop
    first = generation.generate(tmp_path / "all", sources, blocks(known), WANTED, {})
    assert generation.generate(tmp_path / "all", sources, Killed([], 0), WANTED, {}) == first, "the histories are not even read"


def test_a_finished_part_that_was_damaged_is_made_again_and_never_handed_out(shop, tmp_path):
    _, sources, known = shop
    first = generation.generate(tmp_path / "all", sources, blocks(known), WANTED, {})
    whole = bytes_of(tmp_path / "all")
    for damaged in ("part-000001.parquet", generation.PLAN):
        (tmp_path / "all" / damaged).write_bytes(whole[damaged][:-1] + b"?")
        with pytest.raises(StateError, match="bytes that differ"):
            list(generation.candidates(tmp_path / "all"))
        assert generation.generate(tmp_path / "all", sources, blocks(known), WANTED, {}) == first
        assert bytes_of(tmp_path / "all") == whole


def test_a_source_whose_index_was_changed_is_another_source(shop):
    """Indexes over one model that differ in an item that was taken out, or put in, or where it stands, do not answer alike."""
    interactions, _, known = shop

    def fitted():
        model = lineup.make("als", {"n_factors": 8, "n_epochs": 1})
        return Indexed(model, IndexSettings(kind="flat", max_bad_share=1)).fit(interactions)

    indexed = fitted()
    assert keeping.digest(indexed) == keeping.digest(fitted()), "and not of when it was built"
    changed = [indexed.without(np.array([item]), known) for item in (2, 3)]
    changed += [indexed.with_items(np.array([3]), np.full((1, 8), value, np.float32), known) for value in (0.5, 0.25)]
    changed += [indexed.grown(interactions.item_ids, np.unique([*interactions.item_ids, new])) for new in ("a", "z")]
    assert len({keeping.digest(made) for made in (indexed, *changed)}) == 7


@pytest.mark.parametrize("change", ["wanted", "source", "knob", "histories"])
def test_parts_of_another_plan_are_thrown_away(shop, tmp_path, change):
    interactions, sources, known = shop
    with pytest.raises(KeyboardInterrupt):
        generation.generate(tmp_path / "mixed", sources, Killed(blocks(known), 2), WANTED, {"digest": "a"})
    wanted, made_of = WANTED, {"digest": "a"}
    if change == "wanted":
        wanted = Wanted(k_per_source=4, k=8, exclude_seen=True)
    elif change == "source":
        sources = {"popular": sources["popular"]}
    elif change == "knob":
        sources = {**sources, "item_knn": lineup.make("item_knn", {"recency_half_life_days": 3.0}).fit(interactions)}
    else:
        made_of = {"digest": "b"}
    generation.generate(tmp_path / "mixed", sources, blocks(known), wanted, made_of)
    generation.generate(tmp_path / "fresh", sources, blocks(known), wanted, made_of)
    assert bytes_of(tmp_path / "mixed") == bytes_of(tmp_path / "fresh")


def test_users_of_whom_no_source_knows_anything_have_no_row(shop, tmp_path):
    _, sources, known = shop
    made = generation.generate(tmp_path / "none", {"item_knn": sources["item_knn"]}, [strangers(known.n_items, 3)], WANTED, {})
    assert (made.facts["users"], made.facts["rows"]) == (3, 0)


def test_an_unfitted_source_and_no_source_are_refused(shop, tmp_path):
    known = shop[2]
    with pytest.raises(StateError, match="not fitted"):
        generation.generate(tmp_path / "all", {"popular": lineup.make("popular")}, blocks(known), WANTED, {})
    with pytest.raises(StateError, match="no source"):
        generation.generate(tmp_path / "all", {}, blocks(known), WANTED, {})


def test_a_run_generates_for_all_its_users_from_histories_read_in_blocks(run_home):  # noqa: F811
    fit_all(run_home)
    settings = config.load(run_home)
    made = generation.of_run(run_home, AS_OF, users_at_once=13)
    world = universe.load(run_home, AS_OF)
    assert made.facts["users"] == len(world.user_ids)
    whole = histories(world.interactions(AS_OF, settings.training), world.user_ids)
    sources = {name: lineup.load(universe.run_folder(run_home, AS_OF) / "retrieval" / name) for name in settings.retrieval.sources}
    lists = {name: source.retrieve(whole, 10, exclude_seen=False) for name, source in sources.items()}
    merged = merging.merge(lists, 15, blend.recipe(run_home, AS_OF))
    folder = generation.folder(run_home, AS_OF)
    found = pa.concat_tables(generation.candidates(folder)).to_pandas()
    assert found.equals(blend.tabulate(merged, np.arange(len(world.user_ids), dtype=np.int32)).to_pandas())
    assert publish.manifest(folder, verify=True).digest == made.digest
    said = CliRunner().invoke(app, ["retrieval", "generate", "--users-at-once", "13", "--json", "--home", str(run_home.root)])
    assert said.exit_code == 0, said.output
    answer = json.loads(said.output)
    assert (answer["users"], answer["candidates"], answer["parts"]) == (len(world.user_ids), len(found), -(-len(world.user_ids) // 13))


def test_it_tells_how_far_it_has_come(shop, tmp_path):
    _, sources, known = shop
    told = []
    generation.generate(tmp_path / "all", sources, blocks(known), WANTED, {}, tell=told.append)
    assert told == [*range(7, known.n_users, 7), known.n_users]
