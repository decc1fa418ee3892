"""Promise 28: assignment is deterministic, even, independent, exclusive within a layer, and moves as few units as can be."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime, timedelta
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from pipelines.config import Home
from pipelines.errors import StateError
from pipelines.evaluation import experiments
from pipelines.serving import assignment
from pipelines.serving.assignment import Arm, Experiment, Experiments, arm_in, arm_of, fraction
from pipelines.window import utc

AT = utc("2025-03-10")
HALVES = Experiment(arms={"control": Arm(), "new": Arm()})
TWO_LAYERS = """
[memory]
layer = "ranking"
slice = [0.0, 0.5]
primary = "ctr"
guardrails = { revenue = 0.02 }
start = 2025-03-03T00:00:00Z
end = 2025-03-31T00:00:00Z
[memory.arms.control]
[memory.arms.shorter]
weight = 3
version = 12

[exploring]
layer = "ranking"
slice = [0.5, 0.8]
[exploring.arms.control]
[exploring.arms.more]
rerank = { depth = 30 }

[looks]
layer = "page"
[looks.arms.control]
[looks.arms.b]
[looks.arms.mixed]
interleave = ["control", "b"]
"""


def units(n: int) -> list[str]:
    return [f"user-{number}" for number in range(n)]


def arms(name: str, experiment: Experiment, ids: list[str]) -> np.ndarray:
    return np.array([arm_of(name, experiment, one) for one in ids])


def test_the_arm_is_the_same_in_another_process_for_good():
    code = (
        "from pipelines.serving.assignment import *; e = Experiment(arms={'control': Arm(), 'new': Arm()}); "
        "print(''.join(arm_of('x', e, f'u{n}')[0] for n in range(24)))"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout.strip()
        for seed in ("0", "1")
    ]
    assert said == ["nnnnnnnncnnccncnnncnnccc"] * 2  # written down once: whoever changes the hash deals all users of all shops anew
    assert "".join(arm_of("x", HALVES, f"u{n}")[0] for n in range(24)) == said[0]


def test_words_do_not_run_into_each_other():
    assert fraction("ab", "c") != fraction("a", "bc")
    assert 0 < fraction("") < 1


def test_arms_get_users_by_weight():
    experiment = Experiment(arms={"control": Arm(weight=1), "a": Arm(weight=2), "b": Arm(weight=1)})
    got = arms("x", experiment, units(20_000))
    counts = [(got == arm).sum() for arm in experiment.arms]
    assert stats.chisquare(counts, [5000, 10_000, 5000]).pvalue > 0.001


def test_a_new_arm_takes_its_share_from_the_others_and_moves_nobody_else():
    ids = units(8_000)
    before = arms("x", HALVES, ids)
    after = arms("x", HALVES.model_copy(update={"arms": {**HALVES.arms, "third": Arm()}}), ids)
    moved = before != after
    assert set(after[moved]) == {"third"}
    assert moved.mean() == pytest.approx(1 / 3, abs=0.02)
    assert (before[moved] == "new").mean() == pytest.approx(0.5, abs=0.04)


def test_a_heavier_arm_only_gains_users():
    ids = units(8_000)
    before, after = arms("x", HALVES, ids), arms("x", HALVES.model_copy(update={"arms": {"control": Arm(), "new": Arm(weight=2)}}), ids)
    assert set(after[before != after]) == {"new"}
    assert (before != after).mean() == pytest.approx(2 / 3 - 1 / 2, abs=0.02)


def test_a_growing_slice_keeps_everyone_who_is_in_it():
    ids = units(5_000)
    rows = []
    for share in (0.1, 0.3, 1.0):
        dealt = Experiments({"x": HALVES.model_copy(update={"slice": (0.0, share)})})
        rows.append({one: found[0].arm for one in ids if (found := dealt.assign({"user": one}, AT))})
    assert [len(row) / len(ids) for row in rows] == pytest.approx([0.1, 0.3, 1.0], abs=0.02)
    for smaller, larger in pairwise(rows):
        assert smaller.items() <= larger.items()


def test_experiments_of_a_layer_never_share_a_user_and_layers_are_independent():
    dealt = assignment.parse(TWO_LAYERS)
    found = [{one.experiment: one.arm for one in dealt.assign({"user": unit}, AT)} for unit in units(20_000)]
    assert not any("memory" in one and "exploring" in one for one in found)
    assert all("looks" in one for one in found)
    inside = [one for one in found if "memory" in one]
    assert len(inside) / len(found) == pytest.approx(0.5, abs=0.01)
    table = [
        [sum(one["memory"] == a and one["looks"] == b for one in inside) for b in ("control", "b", "mixed")] for a in ("control", "shorter")
    ]
    assert stats.chi2_contingency(table).pvalue > 0.001


def test_another_salt_deals_everyone_anew():
    ids = units(8_000)
    a, b = arms("x", HALVES, ids), arms("x", HALVES.model_copy(update={"salt": "second try"}), ids)
    assert (a == b).mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.slow
def test_a_million_users_are_dealt_evenly_and_experiments_are_uncorrelated():
    ids = units(1_000_000)
    dealt = {name: arms(name, HALVES, ids) == "new" for name in ("one", "two", "three")}
    for got in dealt.values():
        assert stats.chisquare([got.sum(), (~got).sum()]).pvalue > 0.001
    assert np.abs(np.corrcoef(np.array(list(dealt.values()), dtype=float))[np.triu_indices(3, 1)]).max() < 0.005
    places = np.histogram([fraction("layer", "default", one) for one in ids], bins=100, range=(0, 1))[0]
    assert stats.chisquare(places).pvalue > 0.001
    moved = dealt["one"] != (arms("one", HALVES.model_copy(update={"arms": {**HALVES.arms, "third": Arm()}}), ids) == "new")
    assert moved.mean() == pytest.approx(1 / 6, abs=0.002)  # those of "new" that went to the third arm


@pytest.mark.slow
def test_a_mismatch_is_called_as_often_as_promised():
    rng = np.random.default_rng(0)
    even = rng.binomial(100_000, 0.5, 20_000)
    p = stats.chisquare(np.stack([even, 100_000 - even]), axis=0).pvalue
    assert (p < 0.001).mean() <= 0.001 + 3 * np.sqrt(0.001 / 20_000)
    found = [experiments.sample_ratio([n, 100_000 - n], [1, 1]).p < 0.001 for n in rng.binomial(100_000, 0.49, 2_000)]
    assert np.mean(found) >= 0.99


def test_nobody_is_assigned_before_the_start_or_from_the_end_on():
    dealt = assignment.parse(TWO_LAYERS)
    unit = next(one for one in units(50) if any(found.experiment == "memory" for found in dealt.assign({"user": one}, AT)))

    def there(at: datetime) -> bool:
        return any(found.experiment == "memory" for found in dealt.assign({"user": unit}, at))

    start, end = utc("2025-03-03"), utc("2025-03-31")
    assert [there(start - timedelta(microseconds=1)), there(start), there(end - timedelta(microseconds=1)), there(end)] == [
        False,
        True,
        True,
        False,
    ]


def test_a_request_without_the_unit_takes_no_part():
    assert Experiments({"x": HALVES}).assign({"user": None, "request": "r1"}, AT) == ()
    assert Experiments({"x": HALVES}).assign({"user": ""}, AT) == ()


def test_the_logged_variant_names_every_arm():
    dealt = assignment.parse(TWO_LAYERS)
    found = next(found for unit in units(50) if len(found := dealt.assign({"user": unit}, AT)) == 2)
    variant = assignment.label(found)
    assert variant == "|".join(f"{one.experiment}:{one.arm}" for one in found)
    assert [arm_in(variant, one.experiment) for one in found] == [one.arm for one in found]
    assert arm_in(variant, "loo") is None
    assert arm_in(None, "looks") is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("slice = [0.5, 0.8]", "slice = [0.4, 0.8]"), "at the same time"),
        (("slice = [0.0, 0.5]", "slice = [0.5, 0.5]"), "empty"),
        (("[memory.arms.shorter]\nweight = 3", "[memory.arms.control.x]\nweight = 3"), "no such name"),
        (("weight = 3", "weight = nan"), "weight"),
        (("weight = 3", "weigth = 3"), "did you mean 'weight'"),
        (("[exploring.arms.more]", "[exploring.arms.'a:b']"), "a:b"),
        (('interleave = ["control", "b"]', 'interleave = ["control", "c"]'), "two other arms"),
        (('layer = "ranking"\nslice = [0.5', 'layer = "ranking"\nunit = "request"\nslice = [0.5'), "one unit a layer"),
        (("end = 2025-03-31", "end = 2025-03-01"), "start is not before end"),
        (("[looks]", "[looks"), "experiments.toml"),
        (("[looks]", "['a|b']\n[looks]"), "names no experiment"),
    ],
)
def test_what_cannot_be_run_is_refused_with_its_name(change: tuple[str, str], said: str):
    broken = TWO_LAYERS.replace(*change)
    assert broken != TWO_LAYERS
    with pytest.raises(StateError, match=said):
        assignment.parse(broken)


def test_a_state_folder_without_a_file_has_no_experiments(home: Home):
    assert assignment.load(home).assign({"user": "u"}, AT) == ()
    home.root.mkdir(parents=True)
    (home.root / assignment.FILE).write_text(TWO_LAYERS, encoding="utf-8")
    assert list(assignment.load(home).declared) == ["memory", "exploring", "looks"]
