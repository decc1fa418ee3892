"""What every ranker must do, as a test class: a new one is done when a subclass that names it passes."""

from __future__ import annotations

import sys
from dataclasses import FrozenInstanceError, replace
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from pipelines import knobs
from pipelines.errors import StateError
from pipelines.evaluation import metrics
from pipelines.ranking import rankers
from pipelines.ranking.protocol import Ranker, RankingRows

NAMES = ("popular_score", "popular_rank", "knn_score", "knn_rank", "blend_score", "blend_rank", "signal", "hiss")
SMALL = {"n_rounds": 40, "min_data_in_leaf": 10, "num_threads": 1}
# One shape of batches for all, so that a network is compiled once for all tests.
NETWORK = {
    "n_hidden": 16,
    "n_layers": 1,
    "batch_size": 16,
    "max_list": 16,
    "n_epochs": 25,
    "learning_rate": 1e-2,
    "warmup": 1,
    "dropout": 0.0,
}


def world(seed: int = 3, n_lists: int = 120, n_windows: int = 2) -> RankingRows:
    """Return lists of 1 to 16 candidates where `signal` decides, `hiss` says nothing, and two sources see the signal through fog.

    The best third of what a list can hold is taken: signal above 0.9 is worth 3, above 0.7 it is worth 1. One candidate in
    five is unknown to a source.
    """
    rng = np.random.default_rng(seed)
    group = rng.integers(6, 17, n_lists).astype(np.int32)
    group[0] = 1
    n = int(group.sum())
    signal = rng.random(n)
    gain = np.select([signal > 0.9, signal > 0.7], [3.0, 1.0], 0.0).astype(np.float32)
    columns = []
    lists = np.repeat(np.arange(n_lists), group)
    for fog in (0.1, 0.05):
        seen = signal + fog * rng.standard_normal(n)
        columns += [seen, np.where(rng.random(n) < 0.8, place(seen, lists), np.nan)]
        columns[-2][np.isnan(columns[-1])] = np.nan
    blend = np.nansum([1 / (60 + columns[1]), 1 / (60 + columns[3])], axis=0)
    features = np.column_stack([*columns, blend, place(blend, lists), signal, rng.random(n)]).astype(np.float32)
    for array in (features, gain, group):
        array.flags.writeable = False  # rows are mapped from disk; nobody may write to them
    return RankingRows(features, NAMES, gain, group, (np.arange(n_lists) * n_windows // n_lists).astype(np.int32))


def place(score: np.ndarray, lists: np.ndarray) -> np.ndarray:
    """Return the place of each candidate in its list, 1 is best."""
    order = np.lexsort((-score, lists))
    found = np.empty(len(score))
    found[order] = np.arange(len(score)) - np.searchsorted(lists, lists[order]) + 1
    return found


def ndcg(rows: RankingRows, score: np.ndarray) -> float:
    """Return the mean NDCG@10 of lists that have a positive."""
    starts = np.concatenate([[0], np.cumsum(rows.group)])
    found = []
    for first, last in pairwise(starts):
        taken = np.flatnonzero(rows.gain[first:last] > 0)
        if len(taken):
            item = np.argsort(-score[first:last], kind="stable")[None, :10].astype(np.int32)
            judged = metrics.judge(item, np.array([0, len(taken)]), taken.astype(np.int32), rows.gain[first:last][taken])
            found.append(float(metrics.ndcg(judged, 10)[0]))
    assert len(found) > 20
    return float(np.mean(found))


class RankerContract:
    """Subclass it and name the ranker."""

    ranker: ClassVar[str]
    knobs: ClassVar[dict[str, object]] = {}
    learns_to: ClassVar[float] = 0.97  # NDCG@10 on unseen lists of the world; chance is 0.56
    _shared: ClassVar[list[Ranker]]

    def __init_subclass__(cls) -> None:
        cls._shared = []

    def make(self) -> Ranker:
        """Return the ranker, ready to be fitted."""
        return rankers.make(self.ranker, self.knobs)

    def fitted(self) -> Ranker:
        """Return the ranker fitted on the world, once for all tests."""
        if not self._shared:
            self._shared.append(self.make().fit(world()))
        return self._shared[0]

    def test_where_one_feature_decides_unseen_lists_come_out_in_order(self) -> None:
        unseen = world(seed=8)
        found = self.fitted().score(unseen.features, unseen.group)
        assert found.shape == (len(unseen.gain),)
        assert found.dtype == np.float64
        assert ndcg(unseen, np.random.default_rng(0).random(len(found))) < 0.7, "the world is not won by chance"
        assert ndcg(unseen, found) > self.learns_to

    def test_saved_and_loaded_it_scores_the_same_to_the_last_bit_without_pickle(self, tmp_path: Path) -> None:
        unseen = world(seed=11)
        rankers.save(tmp_path, self.fitted())
        unpickled: list[str] = []
        sys.addaudithook(lambda event, _: unpickled.append(event) if event == "pickle.find_class" else None)
        loaded = rankers.load(tmp_path)
        assert unpickled == []
        assert type(loaded) is type(self.fitted())
        assert [getattr(loaded, knob) for knob in knobs.of(type(loaded))] == [
            getattr(self.fitted(), knob) for knob in knobs.of(type(loaded))
        ]
        assert loaded.features == self.fitted().features
        assert loaded.importance == self.fitted().importance
        assert np.array_equal(loaded.score(unseen.features, unseen.group), self.fitted().score(unseen.features, unseen.group))
        assert rankers.files(loaded) == rankers.files(self.fitted()), "saved again, the same bytes"

    @pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "missing"])
    def test_a_damaged_file_is_refused_before_anything_is_parsed(
        self, tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rankers.save(tmp_path, self.fitted())
        written = sorted(file for file in tmp_path.rglob("*") if file.is_file())
        assert written
        monkeypatch.setattr(type(self.fitted()), "restore", lambda *_: pytest.fail("parsed a damaged model"))
        for victim in written:
            raw = victim.read_bytes()
            spoilt = bytearray(raw)
            spoilt[len(raw) // 2] ^= 1
            if damage == "missing":
                victim.unlink()
            else:
                victim.write_bytes({"flip": bytes(spoilt), "truncate": raw[: len(raw) // 2], "empty": b""}[damage])
            with pytest.raises(StateError, match=r"sha256|JSONDecodeError|no ranker\.json|UnicodeDecodeError"):
                rankers.load(tmp_path)
            victim.write_bytes(raw)

    def test_the_same_rows_give_the_same_bytes(self) -> None:
        assert rankers.files(self.make().fit(world())) == rankers.files(self.fitted())

    def test_a_list_scores_the_same_alone_and_in_company(self) -> None:
        unseen = world(seed=5, n_lists=40)
        together = self.fitted().score(unseen.features, unseen.group)
        starts = np.concatenate([[0], np.cumsum(unseen.group)])
        for first, last in pairwise(starts):
            own = unseen.features[first:last]
            assert np.array_equal(self.fitted().score(own, np.array([last - first])), together[first:last])
            assert np.array_equal(self.fitted().score(own), together[first:last]), "without groups, all rows are one list"

    def test_missing_values_are_answered(self) -> None:
        rows = world(seed=6, n_lists=40)
        features = rows.features.copy()
        features[::3, 1:] = np.nan
        features[:, 0] = np.nan
        assert np.isfinite(self.fitted().score(features, rows.group)).all()
        assert np.isfinite(self.fitted().score(np.full((4, len(NAMES)), np.nan, np.float32))).all()
        assert np.isfinite(self.make().fit(replace(rows, features=features)).score(features, rows.group)).all()

    def test_no_candidates_get_no_scores(self) -> None:
        assert self.fitted().score(np.zeros((0, len(NAMES)), np.float32), np.zeros(0, np.int32)).shape == (0,)

    @pytest.mark.parametrize("width", [0, len(NAMES) - 1, len(NAMES) + 1])
    def test_a_matrix_of_another_width_is_refused(self, width: int) -> None:
        with pytest.raises(StateError, match=f"{width} columns"):
            self.fitted().score(np.zeros((3, width), np.float32))

    def test_it_tells_what_it_reads_and_how_much_it_learnt(self) -> None:
        fitted = self.fitted()
        assert fitted.features == NAMES
        assert all(count >= 0 for count in fitted.size.values())
        assert fitted.size
        shares = fitted.importance
        assert set(shares) <= set(NAMES)
        assert not shares or sum(shares.values()) == pytest.approx(1, abs=1e-4)
        assert list(shares.values()) == sorted(shares.values(), reverse=True)

    def test_an_unfitted_one_says_so(self) -> None:
        nothing = rankers.make(self.ranker)
        with pytest.raises(StateError, match="not fitted"):
            nothing.score(np.zeros((1, len(NAMES)), np.float32))
        with pytest.raises(StateError, match="not fitted"):
            rankers.files(nothing)

    def test_fitting_returns_a_copy_and_knobs_are_frozen(self) -> None:
        ranker = self.make()
        before = ranker.state  # type: ignore[attr-defined]
        assert ranker.fit(world(n_lists=30)) is not ranker
        assert ranker.state is before  # type: ignore[attr-defined]
        with pytest.raises(FrozenInstanceError):
            ranker.state = None  # type: ignore[misc, attr-defined]

    def test_rows_of_one_window_and_rows_that_know_more_are_learnt_from(self) -> None:
        rows = world(n_lists=60, n_windows=1)
        n = len(rows.gain)
        told = replace(
            rows,
            position=np.concatenate([np.arange(size) for size in rows.group]).astype(np.int32),
            weight=np.full(n, 2.0, np.float32),
            outcomes={"view": (rows.gain > 0).astype(np.float32), "purchase": (rows.gain > 2).astype(np.float32)},
        )
        for some in (rows, told):
            assert np.isfinite(self.make().fit(some).score(some.features, some.group)).all()

    def test_its_own_knobs_pass_their_checks_and_a_stranger_does_not(self) -> None:
        prototype = rankers.RANKERS[self.ranker]
        given = {knob: getattr(prototype, knob) for knob in knobs.of(type(prototype))}
        assert rankers.make(self.ranker, given) == prototype
        with pytest.raises(StateError, match=r"knobs \['phase_of_the_moon'\]"):
            rankers.make(self.ranker, {"phase_of_the_moon": 1})
