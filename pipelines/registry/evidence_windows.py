"""What each decision was made on, user by user, kept for the decisions after it.

    evidence/<as_of>/<champion>-<challenger>/      the first twelve digits of both bundles' digests
        per_user.parquet   user_id, champion, challenger: NDCG@10 in [0, 1], sorted by user_id
        about.json         as_of, start and end of the judged window, digests of both bundles, digest of the challenger's recipe

The ledger's entry names the folder and the digest of its content, so a window that was changed or lost after it was judged is found
out: leaving it out quietly would be a way to choose the evidence.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import columns as c
from pipelines import publish
from pipelines.config import Home
from pipelines.datasets.interactions import strings
from pipelines.errors import StateError
from pipelines.registry.gate_windows import Window
from pipelines.window import stamp, utc

TABLE: Final = "per_user.parquet"
ABOUT: Final = "about.json"
RECIPE: Final = ("features", "training", "retrieval", "ranking", "search", "rerank", "exploration")  # the settings that make a challenger


@dataclass(frozen=True)
class About:
    """One judged window: times in ISO 8601, digests in hexadecimal."""

    as_of: str
    start: str
    end: str
    champion: str
    challenger: str
    recipe: str


def recipe(settings: Mapping[str, Any]) -> str:
    """Return the digest of the settings that make a challenger, as a bundle keeps them."""
    return hashlib.sha256(publish.to_json({name: settings.get(name) for name in RECIPE}).encode()).hexdigest()


def folder(home: Home, about: About) -> Path:
    """Return where a window's numbers are kept."""
    return home.evidence / stamp(utc(about.as_of)) / f"{about.champion[:12]}-{about.challenger[:12]}"


def write(home: Home, about: About, window: Window) -> dict[str, Any]:
    """Publish a window; return {"folder", "digest", "recipe"}, what the ledger remembers of it. The same numbers give the same digest."""
    path = folder(home, about)
    columns = {c.USER_ID: pa.array(window.users, pa.string())}
    columns |= {"champion": pa.array(window.champion, pa.float64()), "challenger": pa.array(window.challenger, pa.float64())}
    with publish.folder(path, {}) as out:
        publish.write_parquet(out / TABLE, pa.table(columns))
        publish.write_json(out / ABOUT, vars(about))
    return {"folder": str(path.relative_to(home.root)), "digest": publish.manifest(path).digest, "recipe": about.recipe}


def read(home: Home, kept: Mapping[str, Any]) -> tuple[About, Window]:
    """Return a window that a decision was made on.

    Args:
        kept: what `write` returned.

    Raises:
        StateError: it is gone, or was changed.
    """
    path = home.root / str(kept["folder"])
    found = publish.manifest(path, verify=True)
    if found.digest != kept["digest"]:
        raise StateError(str(path), found="other numbers than were judged", allowed=f"digest {str(kept['digest'])[:12]}")
    about = About(**json.loads((path / ABOUT).read_text(encoding="utf-8")))
    table = pq.read_table(path / TABLE)
    values = (np.asarray(table[name].to_numpy(), dtype=np.float64) for name in ("champion", "challenger"))
    return about, Window(about.as_of, strings(table[c.USER_ID]), *values)


def earlier(home: Home, entries: Sequence[Mapping[str, Any]], now: About, n_windows: int) -> list[Window]:
    """Return the newest windows before one that do not overlap it or each other, of the same champion and recipe, oldest first.

    Args:
        entries: decisions of the champion's reign, oldest first.
        n_windows: at most so many.

    Raises:
        StateError: one of them is gone, or was changed.
    """
    by_moment: dict[str, Mapping[str, Any]] = {}
    for entry in entries:
        kept = (entry.get("figures") or {}).get("evidence") or {}
        if kept.get("recipe") == now.recipe and utc(entry["as_of"]) < utc(now.as_of):
            by_moment[entry["as_of"]] = kept  # judged again: the last word counts
    chosen: list[Window] = []
    begins = utc(now.start)
    for moment in sorted(by_moment, key=utc, reverse=True):
        if len(chosen) == n_windows:
            break
        if utc(moment) > begins:  # a window ends at its as_of
            continue
        about, window = read(home, by_moment[moment])
        if about.champion == now.champion:
            chosen.append(window)
            begins = utc(about.start)
    return chosen[::-1]
