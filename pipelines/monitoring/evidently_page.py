"""The Evidently page of a drift check, for people to look at; it decides nothing.

Evidently bins numbers into equal widths over both samples, so that one outlier hides a shift. It is
therefore fed our bins as categories, and our thresholds, on a sample drawn in proportion.
"""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from pipelines import publish
from pipelines.config import Home
from pipelines.evaluation import psi
from pipelines.registry import population
from pipelines.window import stamp, utc

ROWS: Final = 2000  # a side: enough for a picture, and Evidently's cost does not follow the shop's size


def page_file(home: Home, as_of: datetime) -> Path:
    """Return where a moment's page lies; the same figures as JSON lie beside it."""
    return home.reports / "evidently" / f"{stamp(as_of)}.html"


def labels(reference: psi.Reference) -> list[str]:
    """Return the names of the bins in their order, numbered so that they also sort in it."""
    if reference.kind == "numeric":
        edges = [f"{edge:.4g}" for edge in reference.edges]
        names = [f"< {edges[0]}", *(f"{low} to {high}" for low, high in itertools.pairwise(edges)), f"≥ {edges[-1]}"] if edges else ["any"]
    else:
        names = [*reference.categories, "other", "unseen"]
    return [f"{place:02d} {name}" for place, name in enumerate([*names, "missing"])]


def sample(counts: psi.Counts, names: list[str]) -> list[str]:
    """Return exactly `ROWS` bin names in proportion to the counts (largest remainders)."""
    exact = counts / counts.sum() * ROWS
    share = np.floor(exact).astype(np.int64)
    share[np.argsort(share - exact, kind="stable")[: ROWS - int(share.sum())]] += 1
    return [name for name, times in zip(names, share, strict=True) for _ in range(times)]


def render(
    home: Home, as_of: datetime, profile: population.Profile, now: population.Columns, thresholds: Mapping[str, float]
) -> Path | None:
    """Write the page and its JSON for the compared features; None, and no page, if there are none."""
    if not thresholds:
        return None
    os.environ.setdefault("DO_NOT_TRACK", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its imports and its plots warn about their own dependencies
        from evidently import DataDefinition, Dataset, Report
        from evidently.metrics import ValueDrift

        names = {name: labels(profile.references[name]) for name in sorted(thresholds)}
        counted = (
            {name: psi.counts(profile.references[name], now[name]) for name in names},
            {name: profile.references[name].counted for name in names},
        )
        frames = [pd.DataFrame({name: sample(counts[name], names[name]) for name in names}) for counts in counted]
        current, reference = (Dataset.from_pandas(frame, DataDefinition(categorical_columns=list(names))) for frame in frames)
        report = Report([ValueDrift(column=name, method="psi", threshold=thresholds[name]) for name in names])
        snapshot = report.run(current, reference, timestamp=utc(as_of), name=f"drift {utc(as_of):%Y-%m-%d} against {profile.day:%Y-%m-%d}")
        page = page_file(home, as_of)
        with publish.replacing(page) as temporary:
            snapshot.save_html(str(temporary))
        publish.write_text(page.with_suffix(".json"), snapshot.json())
    return page
