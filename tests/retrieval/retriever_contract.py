"""What every retriever must do, as a test class: a new one is done when a subclass that names it passes."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pytest

from pipelines import columns as c
from pipelines import tables
from pipelines.datasets import profiles
from pipelines.datasets.interactions import Histories, Interactions, histories
from pipelines.errors import StateError
from pipelines.retrieval import lineup, neighbours, topk
from pipelines.retrieval.protocol import Candidates, Retriever

DAY = 86_400_000_000
NOW = 20_000 * DAY


def world(events: list[tuple[int, int, float, float]], n_users: int, n_items: int) -> Interactions:
    """Return interactions from (user, item, days before now, weight), as the loader would.

    Even items are described as ebony, odd ones as ivory; even users live in Norway, odd ones in Peru.
    """
    rows = sorted((user, NOW - int(age * DAY), item, weight) for user, item, age, weight in events)
    user, at, item, weight = (np.array(column) for column in zip(*rows, strict=True)) if rows else (np.empty(0),) * 4
    return Interactions(
        user_ids=np.array([f"u{n:03}" for n in range(n_users)], dtype=np.str_) if n_users else np.empty(0, dtype="U1"),
        item_ids=np.array([f"i{n:03}" for n in range(n_items)], dtype=np.str_) if n_items else np.empty(0, dtype="U1"),
        user=user.astype(np.int32),
        item=item.astype(np.int32),
        at=at.astype(np.int64),
        weight=weight.astype(np.float32),
        event_type=np.zeros(len(rows), dtype=np.int8),
        value=np.full(len(rows), np.nan, dtype=np.float32),
        as_of=NOW,
        items=described(tables.ITEMS, profiles.ITEMS, {c.TITLE: ["Ebony", "ivory"], c.CATEGORY: ["black", "white"]}, n_items),
        users=described(tables.USERS, profiles.USERS, {c.COUNTRY: ["NO", "PE"], c.AGE_BAND: ["25-34"]}, n_users),
    )


def described(schema: pa.Schema, names: tuple[str, ...], values: dict[str, list[str]], n_rows: int) -> pa.Table:
    """Return a table whose columns repeat some values down the rows; null where there are none."""
    columns = {name: (values.get(name, [None]) * n_rows)[:n_rows] for name in names}
    return pa.table(columns, schema=pa.schema([schema.field(name) for name in names]))


def checkerboard(n_users: int = 40, n_items: int = 20) -> Interactions:
    """Return a world in which even users like even items and odd users odd ones, each all but one of its colour."""
    events = [
        (user, item, 1 + (item + user) % n_items / n_items, 1.0)
        for user in range(n_users)
        for item in range(user % 2, n_items, 2)
        if item != missing(user, n_items)
    ]
    return world(events, n_users, n_items)


def missing(user: int, n_items: int = 20) -> int:
    """Return the one item of its colour that a user has not met."""
    return (user * 3) % n_items if user % 2 == (user * 3) % 2 else user % n_items


def random_world(seed: int) -> Interactions:
    """Return a small world with heavy and silent users, dead items, repeated events, ties in time and worthless events."""
    rng = np.random.default_rng(seed)
    n_users, n_items, n = rng.integers(1, 30), rng.integers(1, 40), rng.integers(0, 400)
    users = (n_users * rng.random(n) ** 2).astype(int)
    items = (n_items * rng.random(n) ** 3 * 0.9).astype(int)
    ages = rng.integers(1, 200, n) / 2
    weights = rng.choice([0.0, 1.0, 2.0, 3.0], n)
    return world(list(zip(users, items, ages, weights, strict=True)), int(n_users), int(n_items))


def everyone(interactions: Interactions) -> Histories:
    """Return every user's history, in arrays that nobody may write to: sources share them."""
    known = histories(interactions, interactions.user_ids)
    for array in (known.indptr, known.item, known.at, known.weight):
        array.flags.writeable = False
    return known


def strangers(n_items: int, n_users: int = 2) -> Histories:
    """Return users without any event."""
    empty = np.empty(0)
    return Histories(
        np.zeros(n_users + 1, dtype=np.int64), empty.astype(np.int32), empty.astype(np.int64), empty.astype(np.float32), n_items, NOW
    )


def assert_well_formed(found: Candidates, n_users: int, k: int, n_items: int) -> None:
    assert found.item.shape == found.score.shape == (n_users, k)
    assert (found.item.dtype, found.score.dtype) == (np.int32, np.float32)
    padded = found.item == -1
    assert ((found.item >= -1) & (found.item < n_items)).all()
    assert (np.isneginf(found.score) == padded).all(), "a pad and only a pad scores -inf, and nothing is NaN"
    assert not (padded[:, :-1] & ~padded[:, 1:]).any(), "pads stand at the end"
    left, right = found.score[:, :-1], found.score[:, 1:]
    assert (left >= right).all(), "best first"
    tied = (left == right) & ~padded[:, 1:]
    assert (found.item[:, :-1][tied] < found.item[:, 1:][tied]).all(), "equal scores are ordered by item index"
    for row in found.item:
        kept = row[row >= 0]
        assert len(np.unique(kept)) == len(kept), "no item twice"


class RetrieverContract:
    """Subclass it and name the source."""

    _shared: ClassVar[dict[int | None, tuple[Interactions, Retriever]]]
    source: ClassVar[str]
    personal: ClassVar[bool] = True  # False: the same list for everyone
    proposes_seen_only: ClassVar[bool] = False
    proposes_new: ClassVar[bool] = False  # True: also items that nobody liked yet
    worlds: ClassVar[tuple[int, ...]] = tuple(range(12))  # random ones, of which a network, slow to fit, meets all in a slow test only
    by_blas: ClassVar[bool] = False  # True: BLAS may round a block of another height otherwise, which can swap near-ties

    def __init_subclass__(cls) -> None:
        cls._shared = {}

    def shared(self, seed: int | None = None) -> tuple[Interactions, Retriever]:
        """Return a world (the checkerboard, or a random one) and the source fitted on it once for all tests; nobody may write to it."""
        if seed not in self._shared:
            interactions = self.checkerboard() if seed is None else self.random_world(seed)
            fitted = self.make().fit(interactions)
            for array in (fitted.state or {}).values():
                array.flags.writeable = False
            self._shared[seed] = interactions, fitted
        return self._shared[seed]

    def make(self) -> Retriever:
        return lineup.make(self.source)

    def checkerboard(self) -> Interactions:
        return checkerboard()

    def random_world(self, seed: int) -> Interactions:
        return random_world(seed)

    def test_on_the_checkerboard_every_user_gets_the_missing_item_of_its_colour(self) -> None:
        interactions, fitted = self.shared()
        found = fitted.retrieve(everyone(interactions), 3, exclude_seen=True)
        assert_well_formed(found, 40, 3, 20)
        if self.proposes_seen_only:
            assert (found.item == -1).all()
        elif self.personal:
            assert found.item[:, 0].tolist() == [missing(user) for user in range(40)]
        else:
            assert len(np.unique(found.item[0])) == 3

    def test_on_the_checkerboard_seen_items_of_the_own_colour_come_first(self) -> None:
        interactions, fitted = self.shared()
        found = fitted.retrieve(everyone(interactions), 9, exclude_seen=False)
        assert (found.item >= 0).all()
        if self.personal:
            assert (found.item % 2 == np.arange(40)[:, None] % 2).all()

    @pytest.mark.parametrize("exclude_seen", [False, True])
    @pytest.mark.parametrize("k", [1, 60])
    def test_lists_are_well_formed_in_any_world(self, k: int, exclude_seen: bool) -> None:
        self.check_lists(self.worlds, k, exclude_seen)

    @pytest.mark.slow
    @pytest.mark.parametrize("exclude_seen", [False, True])
    @pytest.mark.parametrize("k", [1, 60])
    def test_lists_are_well_formed_in_twelve_worlds(self, k: int, exclude_seen: bool) -> None:
        self.check_lists(RetrieverContract.worlds, k, exclude_seen)

    def check_lists(self, worlds: tuple[int, ...], k: int, exclude_seen: bool) -> None:
        proposed = 0
        for seed in worlds:
            interactions, fitted = self.shared(seed)
            known = everyone(interactions)
            found = fitted.retrieve(known, k, exclude_seen=exclude_seen)
            assert_well_formed(found, known.n_users, k, known.n_items)
            with_events = np.unique(interactions.item[interactions.weight > 0])
            if not self.proposes_new:
                assert np.isin(found.item[found.item >= 0], with_events).all(), "what nobody liked is never proposed"
            if exclude_seen:
                for row in range(known.n_users):
                    met = known.item[known.indptr[row] : known.indptr[row + 1]]
                    assert not np.isin(found.item[row], met).any(), "also what was met without liking it"
            proposed += (found.item >= 0).sum()
        assert proposed > 0 or (self.proposes_seen_only and exclude_seen)

    def test_users_nobody_knows_get_the_common_list_or_nothing(self) -> None:
        found = self.shared()[1].retrieve(strangers(20), 5, exclude_seen=True)
        assert_well_formed(found, 2, 5, 20)
        assert (found.item[0] == found.item[1]).all()
        assert (found.item == -1).all() == self.personal

    def test_worlds_without_events_items_or_users_are_answered_with_empty_rows(self) -> None:
        for n_users, n_items in [(0, 0), (3, 0), (0, 3), (3, 3)]:
            fitted = self.make().fit(world([], n_users, n_items))
            found = fitted.retrieve(strangers(n_items), 4, exclude_seen=False)
            assert_well_formed(found, 2, 4, n_items)
            assert (found.item == -1).all()
            assert fitted.retrieve(strangers(n_items, 0), 4, exclude_seen=False).item.shape == (0, 4)

    def test_a_catalogue_of_one_item_pads_with_minus_one(self) -> None:
        interactions = world([(0, 0, 1.0, 1.0), (1, 0, 2.0, 1.0)], 2, 1)
        found = self.make().fit(interactions).retrieve(everyone(interactions), 5, exclude_seen=False)
        assert_well_formed(found, 2, 5, 1)

    def test_the_same_events_give_the_same_bytes(self) -> None:
        interactions, first = self.shared(3)
        second = self.make().fit(interactions)
        assert first.state is not None
        assert second.state is not None
        assert {key: value.tobytes() for key, value in first.state.items()} == {key: value.tobytes() for key, value in second.state.items()}

    def test_a_user_asked_alone_gets_what_it_gets_in_company(self) -> None:
        interactions, fitted = self.shared()
        known = everyone(interactions)
        together = fitted.retrieve(known, 6, exclude_seen=False)
        for row in (0, 7, 39):
            alone = fitted.retrieve(known.rows(row, row + 1), 6, exclude_seen=False)
            assert set(alone.item[0]) == set(together.item[row])
            np.testing.assert_allclose(alone.score[0], together.score[row], rtol=1e-4)

    def test_small_blocks_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        interactions, fitted = self.shared(5)
        whole = fitted.retrieve(everyone(interactions), 8, exclude_seen=True)
        monkeypatch.setattr(topk, "BLOCK", 50)
        monkeypatch.setattr(neighbours, "PRODUCTS", 50)
        cut = self.make().fit(interactions).retrieve(everyone(interactions), 8, exclude_seen=True)
        np.testing.assert_allclose(cut.score, whole.score, rtol=1e-4, atol=1e-6)  # BLAS rounds sums that cancel, too
        if not self.by_blas:
            assert (cut.item == whole.item).all()

    def test_an_unfitted_one_says_so(self) -> None:
        with pytest.raises(StateError, match="not fitted"):
            self.make().retrieve(strangers(3), 1, exclude_seen=False)

    def test_histories_over_another_catalogue_are_refused(self) -> None:
        _, fitted = self.shared()
        with pytest.raises(StateError, match="histories over 21 items"):
            fitted.retrieve(strangers(21), 1, exclude_seen=False)

    def test_fitting_returns_a_copy_and_knobs_are_frozen(self) -> None:
        retriever = self.make()
        assert retriever.fit(self.random_world(5)) is not retriever
        assert retriever.state is None
        with pytest.raises(FrozenInstanceError):
            retriever.state = {}  # type: ignore[misc]

    def test_saved_and_loaded_it_answers_the_same(self, tmp_path: Path) -> None:
        interactions, fitted = self.shared(7)
        known = everyone(interactions)
        lineup.save(tmp_path, self.source, fitted)
        loaded = lineup.load(tmp_path)
        assert loaded == fitted, "the knobs"
        before, after = (one.retrieve(known, 5, exclude_seen=False) for one in (fitted, loaded))
        assert (before.item == after.item).all()
        assert (before.score == after.score).all()
