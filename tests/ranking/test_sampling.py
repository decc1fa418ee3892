"""What is kept of the candidates, on lists that can be counted by hand."""

from __future__ import annotations

import numpy as np

from pipelines.ranking.sampling import draws, keep

STARTS = np.array([0, 4, 7, 12])
GAIN = np.array([0, 3, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2], np.float32)
ROW = np.repeat([10, 11, 12], [4, 3, 5])
ITEM = np.arange(12)


def test_lists_without_a_positive_go_and_the_others_keep_positives_and_so_many_negatives():
    kept = keep(STARTS, GAIN, draws(ROW, ITEM, 7), 2)
    assert np.add.reduceat(kept, STARTS[:-1]).tolist() == [3, 0, 4]
    assert kept[GAIN > 0].all()


def test_a_large_enough_cap_keeps_every_row_of_a_useful_list():
    assert keep(STARTS, GAIN, draws(ROW, ITEM, 7), 99).tolist() == [True] * 4 + [False] * 3 + [True] * 5


def test_a_users_draw_does_not_depend_on_who_else_is_drawn():
    whole = keep(STARTS, GAIN, draws(ROW, ITEM, 7), 2)
    alone = keep(np.array([0, 5]), GAIN[7:], draws(ROW[7:], ITEM[7:], 7), 2)
    assert whole[7:].tolist() == alone.tolist()


def test_draws_are_uniform_over_places_and_differ_by_seed():
    n_lists, length = 4000, 20
    starts = np.arange(n_lists + 1) * length
    gain = np.zeros(n_lists * length, np.float32)
    gain[starts[:-1]] = 1
    row, item = np.repeat(np.arange(n_lists), length), np.tile(np.arange(length), n_lists)
    kept = keep(starts, gain, draws(row, item, 1), 5).reshape(n_lists, length)
    share = kept[:, 1:].mean(axis=0)
    assert np.abs(share - 5 / 19).max() < 0.03
    assert (kept != keep(starts, gain, draws(row, item, 2), 5).reshape(n_lists, length)).any()
