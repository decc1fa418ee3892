"""Answers to write to the impression log, and what of them is in the lake."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pyarrow.parquet as pq
import scripted

from pipelines.config import Home
from pipelines.decision_policies import ImpressionPolicy
from pipelines.serving.journal import Journal
from pipelines.serving.request import FULL, Answer
from pipelines.window import DAY, floor_day

POLICY = ImpressionPolicy(feature_share=0.25)
AS_OF = floor_day(scripted.NOW) + DAY


def answer(number: int = 0, **said: object) -> Answer:
    """Return an answer of three items, with the values of two features."""
    asked = {name: said.pop(name) for name in ("user_id", "country", "surface", "events", "as_of") if name in said}
    ask = scripted.ask(request_id=f"r{number}", **asked)
    items = tuple(replace(one, score=2.0 / one.rank, propensity=0.5, sources=("als", "popular")) for one in scripted.shown("a", "b", "c"))
    features = {"price": (1.0, float("nan"), 3.0), "clicks": (0.0, 1.0, 2.0)}
    return Answer(ask, items, FULL, scripted.RELEASE, variant="x:control", features=features, **said) if "rung" not in said else Answer(
        ask, items, str(said.pop("rung")), scripted.RELEASE, features=features, **said
    )  # fmt: skip


def logged(home: Home, answers: list[Answer], policy: ImpressionPolicy = POLICY) -> Journal:
    journal = Journal(home, policy)
    for one in answers:
        journal(one)
    journal.close()
    return journal


def lake_of(home: Home) -> list[dict[str, object]]:
    files = sorted((home.lake / "impressions").rglob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def digests(home: Home) -> dict[str, str]:
    """Return the digest of everything that a landing leaves, but for its reports."""
    places = [home.lake, home.quarantine]
    files = [file for place in places for file in sorted(place.rglob("*")) if file.is_file() and not file.name.endswith(".lock")]
    return {str(file.relative_to(home.root)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
