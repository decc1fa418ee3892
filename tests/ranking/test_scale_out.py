"""Trees that several workers grew order lists as well as those of one process, and are served without Dask."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from pipelines.errors import ReloopError, StateError
from pipelines.evaluation import paired
from pipelines.ranking import rankers, scale_out
from pipelines.ranking.lambdarank import LambdaRank
from pipelines.ranking.protocol import RankingRows
from pipelines.ranking.row_quality import per_list


def world(seed=3, lists=600, length=15):
    """Return two windows where two features out of five, and noise, decide."""
    rng = np.random.default_rng(seed)
    features = rng.random((lists * length, 5), dtype=np.float32)
    worth = 2 * features[:, 1] + features[:, 3] + rng.normal(0, 0.5, len(features))
    gain = np.select([worth > 2.4, worth > 2.0], [3.0, 1.0], 0.0).astype(np.float32)
    window = np.arange(lists, dtype=np.int32) * 2 // lists
    return RankingRows(features, tuple("abcde"), gain, np.full(lists, length, np.int32), window)


def test_lists_are_never_cut_and_all_are_there():
    rows = world(lists=50)
    for n in (1, 2, 3, 50, 80):
        parts = scale_out._parts(rows, n)
        assert np.concatenate([np.arange(part.start, part.stop) for part in parts]).tolist() == list(range(50))
        assert len(parts) == min(n, 50)
        assert max(part.stop - part.start for part in parts) <= -(-50 // n) + 1


def test_a_place_bias_is_refused_before_any_worker_starts():
    rows = world()
    shown = RankingRows(rows.features, rows.names, rows.gain, rows.group, rows.window, np.ones(len(rows.gain), np.int32))
    with pytest.raises(StateError, match="one process"):
        LambdaRank(n_workers=2, debias="position").fit(shown)


def test_a_scheduler_that_does_not_answer_is_named():
    with (
        pytest.raises(ReloopError, match=r"tcp://127\.0\.0\.1:9"),
        scale_out.cluster(0, "tcp://127.0.0.1:9", wait="1s"),
    ):
        pass


@pytest.mark.slow
def test_two_workers_grow_trees_as_good_as_one_process_does(tmp_path):
    """Paired over lists that neither saw, the difference of NDCG@10 is within +-.01."""
    rows, unseen = world(), world(seed=4)
    knobs = {"min_data_in_leaf": 20, "n_rounds": 60, "num_threads": 1}
    alone, together = LambdaRank(**knobs).fit(rows), LambdaRank(**knobs, n_workers=2).fit(rows)
    gap = paired.interval(per_list(together.score(unseen.features), unseen) - per_list(alone.score(unseen.features), unseen))
    assert gap.n > 500
    assert -0.01 < gap.lower < gap.upper < 0.01
    assert together.size["trees"] > 5

    rankers.save(tmp_path, together)
    np.save(tmp_path / "x.npy", unseen.features)
    script = (
        "import sys\nfor name in ('dask', 'distributed'): sys.modules[name] = None\n"
        "import numpy as np\nfrom pathlib import Path\nfrom pipelines.ranking import rankers\n"
        f"folder = Path({str(tmp_path)!r})\nscore = rankers.of_files({{n: (folder / n).read_bytes() for n in "
        f"{sorted(file.name for file in tmp_path.iterdir() if file.suffix != '.npy')!r}}}).score(np.load(folder / 'x.npy'))\n"
        "np.save(folder / 'score.npy', score)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    assert np.array_equal(np.load(tmp_path / "score.npy"), together.score(unseen.features))
