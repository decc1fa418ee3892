"""The forest scores as LightGBM does, bit for bit, whatever the model and the values; and says when LightGBM must."""

from __future__ import annotations

import logging
import re
from concurrent.futures import ThreadPoolExecutor

import lightgbm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import StateError
from pipelines.ranking import forest, forest_text
from pipelines.ranking.forest import Forest

QUIET = {"verbosity": -1, "num_threads": 1, "min_data_in_leaf": 2, "min_sum_hessian_in_leaf": 1e-6, "seed": 3}
EDGE = float(np.float32(1e-35))  # LightGBM reads what is not farther from 0 than this as 0
ODD = [np.nan, np.inf, -np.inf, 0.0, -0.0, EDGE, -EDGE, 1.1 * EDGE, -1.1 * EDGE, 0.9 * EDGE, -0.9 * EDGE, 1e-45, 3.4e38, -3.4e38]


def train(seed=0, n_features=5, rounds=12, n=600, **parameters):
    """Return a model of noise, with missing values, zeros and copies among what it read."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, n_features)).round(1).astype(np.float32)
    x[rng.random(x.shape) < 0.15] = np.nan
    x[:, -1] = np.where(rng.random(n) < 0.5, 0, x[:, -1])
    y = rng.integers(0, 3, n)
    told = QUIET | {"objective": "lambdarank", "num_leaves": 20} | parameters
    if told["objective"] == "binary":
        y = y > 0
    group = [20] * (n // 20) if told["objective"] in {"lambdarank", "rank_xendcg"} else None
    return lightgbm.train(told, lightgbm.Dataset(x, y, group=group, params=told), rounds)


def trials(booster, rng, n=200):
    """Return rows of which most values are a threshold of the model, the float32 beside one, or odd."""
    text = booster.model_to_string()
    thresholds = [float(one) for line in re.findall(r"^threshold=(.*)$", text, re.MULTILINE) for one in line.split()]
    with np.errstate(over="ignore"):
        at = np.array([*thresholds, 0.0], np.float64).astype(np.float32)
    pool = np.concatenate([at, np.nextafter(at, np.float32(np.inf)), np.nextafter(at, np.float32(-np.inf)), np.array(ODD, np.float32)])
    return rng.choice(pool, size=(n, booster.num_feature()))


def agree(booster, x):
    """Check that a model has a layout, and that its scores are LightGBM's own."""
    scorer = Forest.of(booster)
    assert scorer.layout is not None, scorer.why
    assert len(x) >= forest.FEWEST
    assert np.array_equal(scorer.score(x), booster.predict(x, raw_score=True, num_threads=1))


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    told=st.fixed_dictionaries(
        {
            "objective": st.sampled_from(["lambdarank", "rank_xendcg", "binary", "regression"]),
            "num_leaves": st.sampled_from([2, 3, 17, 64, 65]),
            "zero_as_missing": st.booleans(),
            "use_missing": st.booleans(),
            "boosting": st.sampled_from(["gbdt", "dart"]),
            "monotone_constraints": st.sampled_from([[0] * 5, [1, -1, 0, 0, 1]]),
        }
    ),
)
def test_a_model_is_scored_as_by_lightgbm_bit_for_bit(seed, told):
    booster = train(seed, **told)
    agree(booster, trials(booster, np.random.default_rng(seed)))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_thresholds_that_training_never_makes_are_read_as_lightgbm_reads_them(seed):
    """Doubles between two floats, beyond all floats, within the range that counts as zero; every treatment of what is missing."""
    rng = np.random.default_rng(seed)
    text = re.sub(r"tree_sizes=.*\n", "", train(1).model_to_string())
    finite = [one for one in ODD if not np.isnan(one)]

    def thresholds(match):
        values = rng.choice([*finite, 1e300, -1e300, 0.1, 1 / 3, rng.normal()], len(match[1].split()))
        return "threshold=" + " ".join(f"{value:.17g}" for value in values)

    def decisions(match):
        return "decision_type=" + " ".join(str(kind) for kind in rng.choice([0, 2, 4, 6, 8, 10], len(match[1].split())))

    text = re.sub(r"decision_type=(.*)", decisions, re.sub(r"threshold=(.*)", thresholds, text))
    booster = lightgbm.Booster(model_str=text)
    agree(booster, trials(booster, rng))


def test_the_trees_are_added_in_their_order():
    """In doubles 1e16 + 1 - 1e16 is 0, and 1e16 - 1e16 + 1 is 1: only LightGBM's order gives its score."""
    text = re.sub(r"tree_sizes=.*\n", "", train(num_leaves=2, rounds=3).model_to_string())
    values = iter(["1e16 1e16", "1 1", "-1e16 -1e16"])
    booster = lightgbm.Booster(model_str=re.sub(r"leaf_value=.*", lambda _: f"leaf_value={next(values)}", text))
    x = np.zeros((100, 5), np.float32)
    assert Forest.of(booster).score(x).tolist() == [0.0] * 100
    agree(booster, x)


def test_trees_of_one_leaf_are_constants():
    booster = train(min_data_in_leaf=10_000, objective="regression")
    assert set(forest_text.read(booster.model_to_string()).n_leaves) == {1}
    agree(booster, trials(booster, np.random.default_rng(0)))


@pytest.mark.parametrize("n", [0, 1, 47, 48, 63, 64, 65, 1023, 1024, 1025, 2100])
def test_any_number_of_rows_is_scored_each_as_if_alone(n):
    booster = train()
    x = trials(booster, np.random.default_rng(n), 2100)
    scorer = Forest.of(booster)
    assert np.array_equal(scorer.score(x[:n]), scorer.score(x)[:n])
    assert np.array_equal(scorer.score(x[:n][::-1])[::-1], scorer.score(x)[:n])


def test_doubles_that_no_float32_holds_are_left_to_lightgbm():
    booster = train()
    edge = forest_text.read(booster.model_to_string()).threshold
    x = np.repeat(np.nextafter(edge[np.isfinite(edge)], np.inf)[:60, None], 5, axis=1)
    assert not np.array_equal(x, x.astype(np.float32))
    assert np.array_equal(Forest.of(booster).score(x), booster.predict(x, raw_score=True))


def test_what_follows_the_sum_is_not_applied():
    booster = train(objective="binary")
    x = trials(booster, np.random.default_rng(0))
    assert np.allclose(1 / (1 + np.exp(-Forest.of(booster).score(x))), booster.predict(x), rtol=0, atol=1e-12)


def test_threads_may_score_at_once():
    booster = train(rounds=40)
    scorer, x = Forest.of(booster), trials(booster, np.random.default_rng(0), 2000)
    blocks = [x[first : first + 100] for first in range(0, 2000, 100)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(scorer.score, blocks * 5))
    assert np.array_equal(np.concatenate(found), np.tile(booster.predict(x, raw_score=True), 5))


def categorical():
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.integers(0, 8, 600), rng.normal(size=600)]).astype(np.float32)
    data = lightgbm.Dataset(x, x[:, 0] % 2 + 0.1 * x[:, 1], categorical_feature=[0])
    return lightgbm.train(QUIET | {"objective": "regression"}, data, 5)


REFUSED = {
    "linear leaves": lambda: train(linear_tree=True, objective="regression"),
    "3 scores a row": lambda: train(objective="multiclass", num_class=3),
    "trees that are averaged": lambda: train(boosting="rf", bagging_freq=1, bagging_fraction=0.5, objective="regression"),
    "categorical splits": categorical,
    "a tree of 300 leaves": lambda: train(num_leaves=300, n=4000, n_features=8, objective="regression"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_model_it_does_not_know_is_scored_by_lightgbm_and_the_log_says_why(why, caplog):
    booster = REFUSED[why]()
    with caplog.at_level(logging.WARNING):
        scorer = Forest.of(booster)
    assert scorer.layout is None
    assert why in scorer.why
    assert scorer.why in caplog.text
    x = np.abs(np.random.default_rng(0).normal(size=(100, booster.num_feature()))).astype(np.float32)
    assert np.array_equal(scorer.score(x), booster.predict(x, raw_score=True))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (("version=v4", "version=v9"), "version"),
        (("num_leaves=20", "num_leaves=21"), "do not fit"),
        (("split_feature=", "split_features="), "do not fit"),
        (("leaf_value=", "leaf_values="), "leaf_value"),
    ],
)
def test_a_text_that_is_laid_out_otherwise_is_refused_not_guessed(change, why):
    with pytest.raises(forest_text.Unsupported, match=why):
        forest_text.read(train().model_to_string().replace(*change))


def test_a_matrix_of_another_width_is_refused():
    with pytest.raises(StateError, match=r"shape \(3, 4\)"):
        Forest.of(train()).score(np.zeros((3, 4), np.float32))
