"""Losses and layers, worked out on paper."""

import numpy as np
import pytest

from pipelines.errors import StateError
from pipelines.retrieval.neural import layers, losses

pytest.importorskip("jax")
# Three items with logits ln 1, ln 2, ln 3 for the vector (1, 0); a fourth row is no item.
TABLE = np.array([[0.0, 0], [np.log(2), 0], [np.log(3), 0], [9, 9]], dtype=np.float32)
ALLOWED = np.array([0, 0, 0, layers.MASKED], dtype=np.float32)


def loss(target, negative, kind="softmax", calibration=0.0):
    vector = np.array([[1.0, 0.0]], dtype=np.float32)
    negative = np.array(negative, dtype=np.int32)
    found = losses.loss(vector, np.array([target]), table=TABLE, allowed=ALLOWED, negative=negative, kind=kind, calibration=calibration)
    return float(found[0])


def test_the_full_softmax_is_over_the_items_alone():
    assert loss(2, []) == pytest.approx(-np.log(3 / 6), rel=1e-5)


def test_sampled_items_stand_for_the_whole_and_the_target_does_not_count_against_itself():
    # One negative of three items: its e^logit 2 counts three times. 3 / (3 + 3 * 2).
    assert loss(2, [1]) == pytest.approx(-np.log(3 / 9), rel=1e-5)
    # The second negative is the target itself and is left out: 3 / (3 + 1.5 * 2).
    assert loss(2, [1, 2]) == pytest.approx(-np.log(3 / 6), rel=1e-5)


def test_gbce_without_calibration_is_binary_cross_entropy_and_with_it_weighs_the_positive_by_the_sampling():
    # sigma(ln 3) = 3/4, 1 - sigma(ln 2) = 1/3.
    assert loss(2, [1], "gbce", 0.0) == pytest.approx(-np.log(3 / 4) - np.log(1 / 3), rel=1e-5)
    # One negative of the two others: alpha = 1/2. With t = 1, beta = alpha.
    assert loss(2, [1], "gbce", 1.0) == pytest.approx(-0.5 * np.log(3 / 4) - np.log(1 / 3), rel=1e-5)


def test_an_unknown_loss_is_refused():
    with pytest.raises(StateError, match="expected 'softmax', or 'gbce' with negatives"):
        loss(2, [], "gbce")


def test_layers_on_paper():
    x = np.array([[1.0, 3.0]], dtype=np.float32)
    np.testing.assert_allclose(layers.softmax(np, np.log(x)), [[0.25, 0.75]], rtol=1e-6)
    np.testing.assert_allclose(layers.log_sum_exp(np, np.log(x)), [np.log(4)], rtol=1e-6)
    np.testing.assert_allclose(layers.sigmoid(np, np.log(x)), [[0.5, 0.75]], rtol=1e-6)
    params = {"n.scale": np.array([1.0, 2.0], np.float32), "n.shift": np.array([0.0, 1.0], np.float32)}
    np.testing.assert_allclose(layers.norm(np, params, "n", x), [[-1.0, 3.0]], rtol=1e-5)
    np.testing.assert_allclose(layers.unit(np.array([[3.0, 4.0], [0, 0]], np.float32)), [[0.6, 0.8], [0, 0]], rtol=1e-6)
