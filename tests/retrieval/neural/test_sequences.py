"""Events become sequences, windows and validation splits that can be checked by eye."""

from dataclasses import replace

import numpy as np
import pytest

from pipelines.errors import StateError
from pipelines.retrieval.neural import sequences
from pipelines.retrieval.neural.sequences import Sequences
from pipelines.retrieval.neural.training import Training


class Knobs(Training):
    """Nothing but knobs."""


def steps(*rows: list[int], at: list[int] | None = None, n_items: int = 10) -> Sequences:
    item = np.array([item for row in rows for item in row], dtype=np.int32)
    indptr = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    return Sequences(indptr, item, np.array(at if at is not None else range(len(item)), dtype=np.int64), n_items)


def test_a_run_on_one_item_is_one_step_and_worthless_events_are_none():
    item, indptr = np.array([1, 1, 2, 3, 3, 3], dtype=np.int32), np.array([0, 4, 6])
    usable = np.array([True, True, False, True, True, True])
    found = sequences.of(item, indptr, np.arange(6), usable, 10)
    assert found.item.tolist() == [1, 3, 3], "the second user's run begins anew"
    assert found.indptr.tolist() == [0, 2, 3]


def test_the_newest_steps_stand_right_aligned_behind_padding():
    known = steps([1, 2, 3], [], [4])
    p = known.pad
    assert known.newest(2).tolist() == [[2, 3], [p, p], [p, 4]]
    assert steps([], []).newest(2).tolist() == [[p, p], [p, p]]


def test_pad_and_mask_are_rows_of_the_table_that_no_item_has():
    for n_items in (0, 1, 126, 127, 1000):
        assert sequences.table_rows(n_items) % sequences.ROWS == 0
        assert sequences.table_rows(n_items) - 2 >= n_items


def test_windows_hold_every_step_with_its_successor_once_whatever_the_offset():
    known = steps(list(range(9)), [5], [7, 8])
    for seed in range(5):
        item, following = known.windows(4, np.random.default_rng(seed))
        there = following != known.pad
        assert ((item != known.pad) == there).all()
        pairs = sorted(zip(item[there].tolist(), following[there].tolist(), strict=True))
        assert pairs == sorted([(n, n + 1) for n in range(8)] + [(7, 8)])


def test_whole_windows_hold_every_step_of_users_with_two_or_more():
    known = steps(list(range(9)), [5], [7, 8])
    window = known.wholes(4, np.random.default_rng(1))
    assert sorted(window[window != known.pad].tolist()) == sorted([*range(9), 7, 8])


def test_validation_by_time_withholds_what_came_later_and_judges_the_first_step_of_it():
    known = steps([1, 2, 3], [4, 5, 6], at=[0, 1, 8, 2, 3, 4])
    found = sequences.split(known, Knobs(validation_share=0.1))
    assert found.fit.item.tolist() == [1, 2, 4, 5, 6]
    assert found.user.tolist() == [0], "the second user did nothing later"
    assert found.history.item.tolist() == [1, 2]
    assert found.target.tolist() == [3]


def test_validation_by_last_event_touches_the_chosen_users_alone():
    known = steps([1, 2, 3], [4, 5, 6], [7, 8])
    found = sequences.split(known, Knobs(validation="last", n_validation=1))
    user = found.user[0]
    assert user in {0, 1}, "two steps are too few"
    assert found.target.tolist() == [known.item[known.indptr[user + 1] - 1]]
    assert len(found.fit.item) == len(known.item) - 1


def test_without_anybody_to_judge_there_is_no_split():
    assert sequences.split(steps([1], [2]), Knobs()) is None
    assert sequences.split(steps([1, 2, 3]), Knobs(n_validation=0, validation="last")) is None
    assert sequences.split(steps(), Knobs()) is None
    with pytest.raises(StateError, match="expected 'time' or 'last'"):
        sequences.split(steps([1, 2, 3]), Knobs(validation="random"))


def test_ndcg_counts_what_ranks_above_the_target_and_was_not_met():
    scores = np.array([[5, 4, 3, 2]] * 3, dtype=np.float32)
    history = steps([0], [3], [0, 1], n_items=4)
    found = sequences.ndcg_at_10(scores, history, np.array([2, 2, 2]))
    np.testing.assert_allclose(found, [1 / np.log2(3), 1 / np.log2(4), 1.0])


def test_batches_have_one_size_and_hold_everything():
    rows = list(sequences.shuffled({"n": np.arange(10)}, 4, np.random.default_rng(0)))
    assert [len(batch["n"]) for batch in rows] == [4, 4, 4]
    assert set(np.concatenate([batch["n"] for batch in rows])) == set(range(10))
    assert replace(Knobs(), seed=1) != Knobs()
