"""The matrix of a shop that was really trained twice: its cells are what the gate measures, and a kill costs what was not measured yet."""

from __future__ import annotations

import numpy as np
import pytest
import trained_shop

from pipelines import config
from pipelines.config import Home
from pipelines.errors import StateError
from pipelines.registry import bundle, evidence
from pipelines.replay import live, matrix


def test_a_cell_is_what_the_gate_measures_and_a_rerun_measures_only_what_is_missing(fresh: Home):
    bundles = live.cycles(fresh)
    assert list(bundles) == [trained_shop.FIRST, trained_shop.SECOND]
    told: list[str] = []
    found = matrix.measure(fresh, bundles, tell=lambda what, _: told.append(what))
    assert len(told) == 3  # each model in its own week, and the older one in the newer week
    assert found.after(trained_shop.FIRST) == found.weeks[1]

    judged = evidence.bench(fresh, trained_shop.SECOND, config.load(fresh))
    scored = judged.score(bundle.load(fresh, bundles[trained_shop.FIRST]))
    cell = found.cells[trained_shop.FIRST, trained_shop.SECOND]
    assert np.array_equal(cell.ndcg, scored.ndcg)
    assert np.array_equal(cell.tail, scored.tail, equal_nan=True)
    assert 0 < cell.ndcg.mean() < 1
    assert np.array_equal(found.weeks[1].users, judged.truth.user_ids)

    files = sorted(matrix.folder(fresh).rglob("*.parquet"))
    before = {file: file.read_bytes() for file in files}
    files[0].unlink()  # as a kill would have left it
    told.clear()
    again = matrix.measure(fresh, bundles, tell=lambda what, _: told.append(what))
    assert len(told) == 1
    assert {file: file.read_bytes() for file in files} == before
    assert again.mean(trained_shop.FIRST, trained_shop.SECOND) == found.mean(trained_shop.FIRST, trained_shop.SECOND)


def test_a_maximum_age_leaves_old_models_out_but_for_the_one_that_is_never_replaced(fresh: Home):
    bundles = live.cycles(fresh)
    first, second = trained_shop.FIRST, trained_shop.SECOND
    young = matrix.measure(fresh, bundles, max_age=-1 * (second - first))  # not even a week that begins at once
    assert (first, second) not in young.cells
    assert np.isnan(young.mean(first, second))
    assert (first, second) in matrix.measure(fresh, bundles, max_age=-1 * (second - first), always={first}).cells


def test_a_cell_of_other_users_is_refused(fresh: Home):
    bundles = live.cycles(fresh)
    found = matrix.measure(fresh, bundles)
    assert len(found.weeks) == 2
    file = next(iter((matrix.folder(fresh)).rglob(f"{bundles[trained_shop.SECOND]}.parquet")))
    other = next(one for one in matrix.folder(fresh).rglob(f"{bundles[trained_shop.FIRST]}.parquet") if one.parent != file.parent)
    file.write_bytes(other.read_bytes())
    with pytest.raises(StateError, match="other users than the week's"):
        matrix.measure(fresh, bundles)
