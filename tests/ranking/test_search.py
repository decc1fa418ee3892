"""The search of knobs ends where it would have ended, whatever stopped it; and noise is not taken for a finding."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from ranking_world import AS_OF
from typer.testing import CliRunner

from pipelines import config, publish
from pipelines.cli.entry import app
from pipelines.config import Home
from pipelines.errors import StateError
from pipelines.model_settings import SearchSettings
from pipelines.ranking import rankers, row_quality, search, training, training_set
from pipelines.ranking.lambdarank import LambdaRank
from pipelines.ranking.protocol import RankingRows
from pipelines.ranking.search_space import Split

POLICY = SearchSettings(n_trials=3)
BAD = "num_leaves = 2\nn_rounds = 1\nmin_data_in_leaf = 10\nnum_threads = 1\n"  # knobs that any trial beats


@pytest.fixture(scope="module")
def stocked(shop, tmp_path_factory):
    """Return the shop with the training rows of its run, and a ranker that has bad knobs."""
    home = Home(tmp_path_factory.mktemp("searched") / "home")
    shutil.copytree(shop.root, home.root)
    said = (home.root / "reloop.toml").read_text().split("[ranking]")[0]
    (home.root / "reloop.toml").write_text(f"{said}[ranking]\nmin_training_lists = 20\nnegatives_per_user = 8\nbaselines = []\n{BAD}")
    training_set.build(home, AS_OF)
    return home


@pytest.fixture
def home(stocked, tmp_path):
    shutil.copytree(stocked.root, tmp_path / "home")
    return Home(tmp_path / "home")


def found(home):
    return {file.name: file.read_bytes() for file in search.folder(home, AS_OF).iterdir() if file.name != publish.MANIFEST}


def test_a_search_that_was_killed_goes_on_and_ends_in_the_same_bytes(home, tmp_path):
    other = Home(tmp_path / "other")
    shutil.copytree(home.root, other.root)
    search.search(home, AS_OF, POLICY)

    class Killed(BaseException):
        pass

    def kill(trial):
        if trial["number"] == 1:
            raise Killed

    with pytest.raises(Killed):
        search.search(other, AS_OF, POLICY, kill)
    assert not search.folder(other, AS_OF).exists()
    journal = next((other.cache / "search").glob("*.jsonl"))
    assert len(journal.read_text().splitlines()) == 2
    journal.write_text(journal.read_text() + '{"number": 2, "knobs": {"learn')  # a line that a kill tore
    began = [json.loads(line)["seconds"] for line in journal.read_text().splitlines()[:2]]
    told = []
    search.search(other, AS_OF, POLICY, told.append)
    assert [trial["number"] for trial in told] == [0, 1, 2, 3]
    assert [trial["seconds"] for trial in told[:2]] == began  # these were not tried again
    assert found(home) == found(other)
    assert len(found(home)) == 2


def test_more_trials_begin_with_those_of_before(home):
    search.search(home, AS_OF, SearchSettings(n_trials=1))
    first = search.trials(home, AS_OF)
    search.search(home, AS_OF, POLICY)
    assert search.trials(home, AS_OF)[:2] == first
    search.search(home, AS_OF, SearchSettings(n_trials=3, seed=8))
    assert search.trials(home, AS_OF)[1] != first[1]


def test_the_ranker_is_trained_with_knobs_that_were_shown_to_be_better(home):
    search.search(home, AS_OF, POLICY)
    best = json.loads(found(home)["found.json"])
    assert best["used"]
    assert best["bound"] > 0
    training.train(home, AS_OF)
    ranker = rankers.load(training.folder(home, AS_OF))
    assert {name: getattr(ranker, name) for name in best["knobs"]} == best["knobs"]
    assert publish.manifest(training.folder(home, AS_OF)).facts["settings"]["parameters"]["lambdarank"] == best["knobs"]


def test_knobs_found_on_other_rows_or_beside_other_settings_are_left_alone(home):
    search.search(home, AS_OF, POLICY)
    settings = config.load(home).ranking
    changed, why = search.applied(home, AS_OF, settings.model_copy(update={"seed": 8}))
    assert changed.parameters == {}
    assert "other settings" in why[0]
    with publish.folder(training_set.folder(home, AS_OF), {"folds": {}, "features": []}):
        pass
    same, why = search.applied(home, AS_OF, settings)
    assert same == settings
    assert "other training rows" in why[0]


def test_without_a_trial_to_make_nothing_is_written(home):
    assert config.load(home).search.n_trials == 0
    search.search(home, AS_OF)
    assert not search.folder(home, AS_OF).exists()
    assert search.asked(home, None).n_trials == 0
    assert search.asked(home, 5).n_trials == 5


def test_a_budget_of_seconds_ends_the_search_after_the_trial_that_uses_it_up(home):
    search.search(home, AS_OF, SearchSettings(n_trials=100, seconds=1e-6))
    assert [trial["number"] for trial in search.trials(home, AS_OF)] == [0]


def test_only_rankers_of_trees_are_searched(home):
    with (home.root / "reloop.toml").open("a") as file:
        file.write('ranker = "logistic"\n')
    with pytest.raises(StateError, match="a ranker of trees"):
        search.search(home, AS_OF, POLICY)


def test_the_command_says_what_was_found_and_by_its_exit_code_whether_it_is_used(home):
    told = CliRunner().invoke(app, ["ranking", "search", "--as-of", "2025-02-17", "--trials", "3", "--home", str(home.root), "--json"])
    assert told.exit_code == 0, told.output
    answer = json.loads(told.stdout)
    assert answer["used"]
    assert len(answer["tried"]) == 4
    shown = CliRunner().invoke(app, ["ranking", "search", "--as-of", "2025-02-17", "--trials", "3", "--home", str(home.root)])
    assert shown.exit_code == 0
    assert "learning_rate" in shown.stdout
    assert answer["reasons"][0] in shown.stdout


def noise(seed=0, lists=400, length=10):
    """Return two windows whose labels nothing tells of."""
    rng = np.random.default_rng(seed)
    gain = (rng.random(lists * length) < 0.2).astype(np.float32)
    window = np.arange(lists, dtype=np.int32) * 2 // lists
    return RankingRows(rng.random((lists * length, 4), np.float32), tuple("abcd"), gain, np.full(lists, length, np.int32), window)


def test_the_best_of_many_trials_on_noise_is_not_used(tmp_path):
    """It beats the own knobs where it was chosen, with both seeds; where nothing was chosen the bound must lie below 0."""
    for seed in range(2):
        policy = SearchSettings(n_trials=10, seed=seed)
        ranker = LambdaRank(n_rounds=5, num_threads=1)
        split = Split.of(noise(seed), seed)
        tried, _ = search._tried(tmp_path / f"{seed}.jsonl", ranker, split, policy, lambda _: None)
        assert max(tried, key=lambda trial: trial["ndcg_at_10"])["number"] > 0
        assert not search._verified("lambdarank", ranker, tried, split, policy)["used"]


def test_no_list_both_chooses_and_verifies_or_is_learnt_from():
    rows = noise()
    split = Split.of(rows, 7)
    newest = rows.window == 1
    assert not (split.chosen_on & split.verified_on).any()
    assert ((split.chosen_on | split.verified_on) == newest).all()
    assert min(split.chosen_on.sum(), split.verified_on.sum()) > 70


def test_ndcg_of_a_list_on_paper():
    """Gains 0, 3, 1 in the order of the scores: (3 / log2 3 + 1 / 2) / (3 + 1 / log2 3); a list without a positive is unmeasured."""
    rows = RankingRows(
        np.zeros((5, 1), np.float32), ("a",), np.array([1, 3, 0, 0, 0], np.float32), np.array([3, 2], np.int32), np.zeros(2, np.int32)
    )
    got = row_quality.per_list(np.array([0.1, 0.2, 0.9, 0.5, 0.4]), rows)
    third = 1 / np.log2(3)
    assert got[0] == pytest.approx((3 * third + 0.5) / (3 + third))
    assert np.isnan(got[1])
