"""List metrics against paper, against trec_eval (ir-measures) and against scikit-learn."""

import math

import ir_measures
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pipelines.errors import ReloopError
from pipelines.evaluation import metrics

LISTS = np.array([[3, 1, 4, 0, -1], [9, 8, 7, 6, 5], [2, 0, 1, 3, 4]], dtype=np.int32)
# user 0: item 1 worth 3, item 0 worth 1, item 7 worth 2 (not listed); user 1: nothing; user 2: item 2 worth 1
TRUTH = (np.array([0, 3, 3, 4]), np.array([0, 1, 7, 2]), np.array([1.0, 3.0, 2.0, 1.0]))


@pytest.fixture
def judged():
    return metrics.judge(LISTS, *TRUTH)


@pytest.mark.parametrize(
    ("metric", "of_first_user", "of_third_user"),
    [
        (metrics.precision, 2 / 4, 1 / 4),
        (metrics.recall, 2 / 3, 1.0),
        (metrics.hit_rate, 1.0, 1.0),
        (metrics.reciprocal_rank, 1 / 2, 1.0),
        (metrics.average_precision, (1 / 2 + 2 / 4) / 3, 1.0),
        (metrics.ndcg, (3 / math.log2(3) + 1 / math.log2(5)) / (3 + 2 / math.log2(3) + 1 / 2), 1.0),
    ],
)
def test_the_first_four_agree_with_the_sum_on_paper(judged, metric, of_first_user, of_third_user):
    np.testing.assert_allclose(metric(judged, 4), [of_first_user, np.nan, of_third_user], rtol=1e-12)


def test_gains_are_linear_so_the_better_item_first_is_worth_its_gain():
    both = metrics.judge(np.array([[1, 0], [0, 1]]), np.array([0, 2, 4]), np.array([0, 1, 0, 1]), np.array([1.0, 3.0, 1.0, 3.0]))
    ideal = 3 + 1 / math.log2(3)
    np.testing.assert_allclose(metrics.ndcg(both, 2), [1.0, (1 + 3 / math.log2(3)) / ideal])


def test_a_perfect_list_is_worth_one_and_no_rounding_makes_it_more():
    """A gate that takes no value above 1 for an NDCG refused 14 of 50 real decisions for the last bit of a perfect list."""
    rng = np.random.default_rng(0)
    lists, gains = np.tile(np.arange(10, dtype=np.int32), (2000, 1)), -np.sort(-rng.integers(1, 4, (2000, 10)).astype(np.float32), axis=1)
    perfect = metrics.judge(lists, np.arange(0, 20_001, 10), lists.ravel(), gains.ravel())
    found = metrics.ndcg(perfect, 10)
    assert (found <= 1.0).all()
    np.testing.assert_allclose(found, 1.0, rtol=1e-12)


def random_case(seed, n_users=60, n_items=40, width=15):
    rng = np.random.default_rng(seed)
    lists = np.array([rng.permutation(n_items)[:width] for _ in range(n_users)], dtype=np.int32)
    for row in range(0, n_users, 3):
        lists[row, rng.integers(0, width) :] = -1
    n_labels = rng.integers(0, 12, n_users)
    indptr = np.concatenate([[0], np.cumsum(n_labels)])
    items = np.concatenate([np.sort(rng.permutation(n_items)[:n]) for n in n_labels]).astype(np.int32)
    return lists, indptr, items, rng.integers(1, 5, len(items)).astype(np.float32)


@pytest.mark.parametrize("k", [1, 5, 10, 30])
def test_every_list_metric_agrees_with_trec_eval_user_by_user(k):
    names = {"ndcg": "nDCG", "precision": "P", "recall": "R", "hit_rate": "Success", "map": "AP"}
    for seed in range(3):
        lists, indptr, items, gains = random_case(seed)
        ours = metrics.table(metrics.judge(lists, indptr, items, gains), (k,))
        qrels = [
            ir_measures.Qrel(str(user), str(items[at]), int(gains[at]))
            for user in range(len(lists))
            for at in range(indptr[user], indptr[user + 1])
        ]
        run = [ir_measures.ScoredDoc(str(u), str(i), float(-rank)) for u, row in enumerate(lists) for rank, i in enumerate(row) if i >= 0]
        measures = [ir_measures.parse_measure(f"{theirs}@{k}") for theirs in names.values()] + [ir_measures.parse_measure("RR")]
        found = {(str(m.measure), int(m.query_id)): m.value for m in ir_measures.iter_calc(measures, qrels, run)}
        compared = 0
        for user in range(len(lists)):
            has_truth, has_list = indptr[user + 1] > indptr[user], lists[user, 0] >= 0
            for name, theirs in names.items():
                value = ours[f"{name}_at_{k}"][user]
                assert np.isnan(value) == (not has_truth)
                if has_truth and has_list:
                    assert value == pytest.approx(found[f"{theirs}@{k}", user], abs=1e-9)
                    compared += 1
            if has_truth and has_list and k >= lists.shape[1]:
                assert ours[f"mrr_at_{k}"][user] == pytest.approx(found["RR", user])
        assert compared > 100


def test_auc_agrees_with_scikit_learn_ties_included():
    rng = np.random.default_rng(4)
    length = rng.integers(0, 30, 50)
    indptr = np.concatenate([[0], np.cumsum(length)])
    score, hit = rng.integers(0, 6, indptr[-1]).astype(float), rng.random(indptr[-1]) < 0.3
    ours, compared = metrics.auc(indptr, score, hit), 0
    for user in range(50):
        rows = slice(indptr[user], indptr[user + 1])
        if 0 < hit[rows].sum() < length[user]:
            assert ours[user] == pytest.approx(roc_auc_score(hit[rows], score[rows]))
            compared += 1
        else:
            assert np.isnan(ours[user])
    assert compared > 30


def test_users_without_truth_are_left_out_of_the_mean_and_no_user_is_no_number(judged):
    assert metrics.mean(metrics.recall(judged, 4)) == pytest.approx((2 / 3 + 1) / 2)
    nobody = metrics.judge(np.empty((0, 5), dtype=np.int32), np.array([0]), np.empty(0, dtype=int), np.empty(0))
    assert metrics.mean(metrics.ndcg(nobody, 10)) is None


def test_an_item_listed_twice_is_refused_because_it_would_count_twice():
    with pytest.raises(ReloopError, match="an item twice"):
        metrics.judge(np.array([[1, 2, 1]]), np.array([0, 1]), np.array([1]), np.array([1.0]))


def test_lists_for_other_users_than_the_truth_are_refused():
    with pytest.raises(ReloopError, match="2 rows; expected 3"):
        metrics.judge(LISTS[:2], *TRUTH)


def test_names_are_ones_that_mlflow_takes(judged):
    names = list(metrics.table(judged, (10, 50)))
    assert "ndcg_at_10" in names
    assert len(names) == 12
    assert all(name.replace("_", "").isalnum() for name in names)
