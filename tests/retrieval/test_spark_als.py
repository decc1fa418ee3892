"""ALS fitted by Spark: it solves MLlib's loss, answers without Spark, and leaves nothing behind. Errors are tested without Spark."""

import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import numpy as np
import pytest
from retriever_contract import checkerboard, everyone, missing

from pipelines.errors import ReloopError, StateError
from pipelines.retrieval import als, lineup
from pipelines.retrieval.als import Als
from pipelines.retrieval.spark_als import SparkAls

spark = pytest.mark.skipif(
    find_spec("pyspark") is None or which("java") is None,
    reason="pyspark or java is not installed; `make test-spark` installs the former, Debian's openjdk-17-jre-headless is the latter",
)
KNOBS = {"n_factors": 4, "regularization": 1.0, "half_life_days": 1e9, "recency_half_life_days": 1e9}


@spark
def test_a_fit_in_its_own_process_leaves_neither_process_nor_file_and_is_answered_without_spark(tmp_path):
    """Also: whatever number of threads, the same bytes."""
    interactions = checkerboard()
    work = tmp_path / "work"
    work.mkdir()
    model = SparkAls(**KNOBS, n_epochs=4, n_blocks=2, work_folder=str(work), driver_memory="512m")
    fitted = model.fit(interactions)
    assert not list(work.iterdir())
    assert not [line for line in commands() if str(work) in line]
    again = SparkAls(**KNOBS, n_epochs=4, n_blocks=2, driver_memory="512m", num_threads=1).fit(interactions)
    assert {key: value.tobytes() for key, value in fitted.state.items()} == {key: value.tobytes() for key, value in again.state.items()}

    lineup.save(tmp_path, "spark_als", fitted)
    code = (
        "import sys\nfor name in ('pyspark', 'py4j'): sys.modules[name] = None\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\nfrom retriever_contract import checkerboard, everyone\nfrom pipelines.retrieval import lineup\n"
        f"found = lineup.load(Path({str(tmp_path)!r})).retrieve(everyone(checkerboard()), 1, exclude_seen=True)\n"
        "print(found.item[:, 0].tolist())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | {"JAVA_HOME": "/none"})
    assert done.stdout.strip() == str([missing(user) for user in range(40)])


@spark
def test_a_fit_that_is_killed_leaves_nothing_either(tmp_path):
    code = (
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from retriever_contract import checkerboard\nfrom pipelines.retrieval.spark_als import SparkAls\n"
        f"SparkAls(work_folder={str(tmp_path)!r}, n_epochs=10_000).fit(checkerboard())\n"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as fit:
        assert until(lambda: sum(str(tmp_path) in line for line in commands()) >= 3), "the fit, the job and its JVM"
        fit.kill()
    assert until(lambda: not any(str(tmp_path) in line for line in commands()))
    assert until(lambda: not list(tmp_path.iterdir()))


def until(holds, seconds=300):
    """Tell whether something came to hold before long."""
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.2)
    return holds()


@spark
def test_what_spark_says_when_it_fails_is_shown(tmp_path):
    with pytest.raises(ReloopError, match="Spark ended with 1"):
        SparkAls(**KNOBS, master="nonsense://here", work_folder=str(tmp_path)).fit(checkerboard())
    assert not list(tmp_path.iterdir())


@spark
def test_the_state_is_that_of_als_and_means_the_same(monkeypatch):
    """implicit, given MLlib's penalties, ends in the same scores: here the loss has one minimum, whatever the first factors."""
    monkeypatch.setattr(als, "STEP", 1.0001)
    interactions = checkerboard()
    model = SparkAls(**KNOBS | {"regularization": 5.0}, n_epochs=30, n_blocks=1)
    by_spark, by_implicit = model.fit(interactions), Als.fit(model, interactions)
    assert {key: value.dtype for key, value in by_spark.state.items()} == {key: value.dtype for key, value in by_implicit.state.items()}
    assert {key: value.shape for key, value in by_spark.state.items()} == {key: value.shape for key, value in by_implicit.state.items()}
    known, item = everyone(interactions), np.arange(len(interactions.item_ids))
    scores = []
    for fitted in (by_spark, by_implicit):
        users, _ = fitted.query_vectors(known)
        scores.append(users @ fitted.item_vectors()[0][item].T)
    assert scores[0].max() > 0.8
    np.testing.assert_allclose(*scores, atol=1e-3)


def test_users_are_folded_in_with_the_penalty_they_would_have_in_the_fit(monkeypatch):
    """MLlib's regParam * n: a state of two given items, users of one and of two pairs."""
    monkeypatch.setattr(als, "STEP", 1.0001)
    interactions = checkerboard(4, 6)
    factor = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    root = 3.0
    state = {"n_items": np.array([6]), "factor": factor, "known": np.ones(6, dtype=bool), "mean_power": np.array([root])}
    model = SparkAls(**KNOBS, state=state)
    users, told = model.query_vectors(everyone(interactions))
    assert told.all()
    strength = everyone(interactions).matrix().toarray()
    for user, row in zip(users, strength, strict=True):
        gram = (
            factor.T @ factor + factor.T @ np.diag(model.alpha * row) @ factor + model.regularization / root * (row > 0).sum() * np.eye(4)
        )
        np.testing.assert_allclose(user, np.linalg.solve(gram, factor.T @ np.where(row > 0, 1 + model.alpha * row, 0)), atol=2e-3)


def test_without_pyspark_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr("pipelines.retrieval.extras.find_spec", lambda name: None)
    with pytest.raises(ReloopError, match=r"pyspark is not installed.*pip install 'reloop\[spark\]'"):
        SparkAls().fit(checkerboard())


def test_without_java_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr("pipelines.retrieval.extras.find_spec", lambda name: name)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(ReloopError, match=r"no java in JAVA_HOME.*openjdk-17-jre-headless"):
        SparkAls().fit(checkerboard())


def test_an_exponent_that_mllib_does_not_have_is_refused():
    with pytest.raises(StateError, match="1, which is all that MLlib has"):
        SparkAls(frequency_exponent=0.0).fit(checkerboard())


def commands():
    """Return the command lines of everything that runs."""
    lines = []
    for one in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(one.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue  # it ended meanwhile
    assert lines
    return lines
