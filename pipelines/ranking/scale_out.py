"""Trees grown on several machines: LightGBM's data-parallel learner, on Dask.

Each worker holds some of the lists, whole; per round they exchange histograms (LightGBM's `tree_learner=data`). Bins are found on
each worker's own rows, and sums are added in another order, so the trees are others than those of one process, and as good:
equal up to noise, not byte for byte. What is learnt is the same kind of state, served without Dask.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import lightgbm
import numpy as np
import numpy.typing as npt

from pipelines.datasets.interactions import Floats
from pipelines.errors import ReloopError
from pipelines.ranking.protocol import RankingRows
from pipelines.ranking.row_quality import per_list

Doubles = npt.NDArray[np.float64]


def require() -> None:
    """Check that trees can be grown by several workers, importing nothing.

    Raises:
        ReloopError: Dask is not installed.
    """
    if missing := [package for package in ("dask", "distributed") if find_spec(package) is None]:
        raise ReloopError(
            "training on several workers", found=f"{missing} not installed", allowed="the extra `dask`",
            hint="pip install 'reloop[dask]', or leave n_workers and scheduler out of ranking.parameters",
        )  # fmt: skip


@contextmanager
def cluster(n_workers: int, scheduler: str, *, wait: str = "10s") -> Iterator[Any]:
    """Yield a client of the workers that the knobs ask for: those of a running scheduler, else processes of this machine, else None.

    Raises:
        ReloopError: Dask is not installed, or the scheduler does not answer.
    """
    if not n_workers and not scheduler:
        yield None
        return
    require()
    from distributed import Client, LocalCluster

    if scheduler:
        try:
            client = Client(scheduler, timeout=wait)
        except OSError as error:
            raise ReloopError(f"Dask scheduler {scheduler}", found=str(error) or "no answer", allowed="a running scheduler") from error
        with client:
            yield client
        return
    with (
        tempfile.TemporaryDirectory() as work,
        LocalCluster(
            n_workers=n_workers, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0", local_directory=work
        ) as processes,
        Client(processes) as client,
    ):
        yield client


def train(
    client: Any, parameters: dict[str, Any], rows: RankingRows, *, label: Floats, weight: Floats | None, n_rounds: int
) -> lightgbm.Booster:
    """Return the trees that the workers of a client grow together.

    Args:
        client: of `cluster`.
        parameters: as LightGBM reads them; its threads are the workers' own.
        label, weight: float32 [n], of the rows.
    """
    import dask.array as da
    from dask import delayed
    from lightgbm.dask import DaskLGBMRanker

    n_workers = max(len(client.scheduler_info()["workers"]), 1)
    lists = _parts(rows, n_workers)
    ends = np.append(0, np.cumsum(rows.group))

    def spread(values: npt.NDArray[Any], cuts: list[slice]) -> Any:
        """Return an array whose parts lie on the workers, one each."""
        held = [client.scatter(np.ascontiguousarray(values[cut])) for cut in cuts]
        shapes = [(cut.stop - cut.start, *values.shape[1:]) for cut in cuts]
        parts = [da.from_delayed(delayed(one), shape, values.dtype) for one, shape in zip(held, shapes, strict=True)]
        return da.concatenate(parts)

    cuts = [slice(int(ends[part.start]), int(ends[part.stop])) for part in lists]
    told = {name: value for name, value in parameters.items() if name not in {"num_threads", "force_row_wise", "deterministic", "metric"}}
    model = DaskLGBMRanker(client=client, n_estimators=n_rounds, tree_learner="data", **told)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Parameter n_jobs", UserWarning)  # LightGBM sets it, and says that it ignores it
        model.fit(
            spread(rows.features, cuts),
            spread(label, cuts),
            group=spread(rows.group, lists),
            sample_weight=None if weight is None else spread(weight, cuts),
        )
    return model.booster_


def best_rounds(booster: lightgbm.Booster, held: RankingRows, patience: int) -> int:
    """Return how many trees were best for some lists, as early stopping would have it: none are tried after `patience` worse ones.

    LightGBM's Dask learner cannot stop early.
    """
    score, best, at = np.zeros(len(held.gain)), -np.inf, 0
    for tree in range(booster.num_trees()):
        score += booster.predict(held.features, start_iteration=tree, num_iteration=1, raw_score=True)
        value = float(np.nanmean(per_list(score, held)))
        if value > best:
            best, at = value, tree + 1
        elif tree + 1 - at >= patience:
            break
    return at


def _parts(rows: RankingRows, n: int) -> list[slice]:
    """Return the lists cut into at most n runs of about as many rows each."""
    ends = np.cumsum(rows.group)
    borders = np.unique(np.append(0, np.searchsorted(ends, ends[-1] * np.arange(1, n + 1) / n) + 1).clip(0, len(ends)))
    return [slice(int(first), int(last)) for first, last in pairwise(borders)]
