"""Do requests see what training sees: logged feature values against those recomputed offline at that moment, and scores against the model's.

Drift is a world that changed; skew is a defect: the same moment, computed twice, differs. A sample of the requests whose feature values were
logged is made again from the lake and the marts, as a training row of that moment would be (point in time: what had happened and had been
received before it), with the release that answered. A value differs if it is missing on one side alone, or by more than `TOLERANCE`
relative to its size. An item that the sources do not propose offline differs in all its values. Scores are those of the
stored model on the logged values. `reports/skew/<as_of>.json` names the features, most often wrong first.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import columns as c
from pipelines import config, cycle, lake, publish
from pipelines.config import Home
from pipelines.datasets import profiles
from pipelines.datasets.interactions import Dense, Floats, Histories, arrays, described, histories, positions, read
from pipelines.decision_policies import ImpressionPolicy
from pipelines.lake import impressions
from pipelines.lake.segments import COUNTRY, DEVICE
from pipelines.ranking.features import assemble
from pipelines.ranking.rerank import chain
from pipelines.ranking.two_stage import TwoStage, chosen
from pipelines.registry import choosing
from pipelines.window import Window, micros, stamp, utc

DAYS: Final = 7
TOLERANCE: Final = 1e-6
TOLD: Final = (DEVICE, COUNTRY)
ROLLOUT: Final = "rollout-"  # begins the label of a rollout's side, which changes nothing but the release
OK, SKEWED, UNKNOWN = "same", "skewed", "nothing logged"


@dataclass(frozen=True)
class Shown:
    """One logged request with its feature values.

    Attributes:
        variant: labels of what the request took part in, joined by `|`.
        values: float32 [n_items, n_features], NaN where missing, in the order of `names`.
        score: float64 [n_items].
    """

    request_id: str
    user_id: str
    at: datetime
    version: int
    items: tuple[str, ...]
    names: tuple[str, ...]
    values: Floats
    score: np.ndarray[Any, np.dtype[np.float64]]
    device: int
    country: bool
    variant: str = ""


@dataclass(frozen=True)
class Skew:
    """What a check found.

    Attributes:
        requests: recomputed; left_out: logged, but of a release that is gone or a user whose request said what no lake knows.
        values, wrong: feature values compared, and those that differ.
        by_feature: of those that differ.
        scores, wrong_scores: rescored on the logged values, and those that differ by more than is tolerated.
        largest: difference of any score.
    """

    requests: int = 0
    left_out: int = 0
    values: int = 0
    wrong: int = 0
    by_feature: Mapping[str, int] = field(default_factory=dict)
    scores: int = 0
    wrong_scores: int = 0
    largest: float = 0.0

    @property
    def rate(self) -> float:
        """Return the share of values that differ; NaN where none was compared."""
        return self.wrong / self.values if self.values else float("nan")

    def judged(self, policy: ImpressionPolicy) -> tuple[str, list[str]]:
        """Return the verdict with its reasons."""
        if not self.values:
            return UNKNOWN, [f"no feature values to compare; {self.left_out} requests could not be made again"]
        reasons = []
        if not self.rate <= policy.max_skew:
            worst = ", ".join(f"{name} ({count})" for name, count in list(self.by_feature.items())[:5])
            reasons.append(f"{self.wrong:,} of {self.values:,} values differ ({self.rate:.2%}), above {policy.max_skew:.2%}: {worst}")
        if self.wrong_scores:
            reasons.append(f"{self.wrong_scores:,} of {self.scores:,} scores are not the model's, by up to {self.largest:.3g}")
        same = f"{self.values:,} values of {self.requests:,} requests, {self.wrong:,} differ; {self.scores:,} scores, all the model's"
        return (SKEWED, reasons) if reasons else (OK, [same])


def report_file(home: Home, as_of: datetime) -> Path:
    """Return where a check is reported."""
    return home.reports / "skew" / f"{stamp(as_of)}.json"


def check(home: Home, as_of: datetime) -> dict[str, Any]:
    """Recompute a sample of the last week's requests, and leave the report.

    Returns:
        {"verdict", "reasons", "requests", "left_out", "values", "wrong", "rate" or None, "by_feature", "scores", "wrong_scores", "largest"}
    """
    with cycle.stage(home, as_of, "skew") as record:
        policy = config.load(home).impressions
        found = measure(home, Window(utc(as_of) - timedelta(days=DAYS), utc(as_of)), policy)
        verdict, reasons = found.judged(policy)
        said = {
            "verdict": verdict,
            "reasons": reasons,
            "requests": found.requests,
            "left_out": found.left_out,
            "values": found.values,
            "wrong": found.wrong,
            "rate": found.rate if found.values else None,
            "by_feature": dict(found.by_feature),
            "scores": found.scores,
            "wrong_scores": found.wrong_scores,
            "largest": found.largest,
        }
        publish.write_json(report_file(home, as_of), said)
        record.update(said)
    return said


def measure(home: Home, window: Window, policy: ImpressionPolicy) -> Skew:
    """Compare a sample of a window's requests."""
    sample = list(logged(home, window, policy.skew_requests)) if policy.skew_requests else []
    total, wrong_of = Skew(), Counter[str]()
    digests = choosing.digests(home)
    for version in sorted({one.version for one in sample}):
        some = [one for one in sample if one.version == version]
        if (model := _model(home, version, digests.get(version))) is None:
            total = replace(total, left_out=total.left_out + len(some))
            continue
        past = _Past(home, model, some)
        for one in some:
            total = _with(total, one, past, policy, wrong_of)
    return replace(total, by_feature=dict(wrong_of.most_common()))


def logged(home: Home, window: Window, n: int) -> Iterator[Shown]:
    """Yield n of the requests whose feature values were logged, chosen by a hash of their ids; the same window gives the same ones."""
    with impressions.connect(home, window) as engine:
        found = engine.sql(
            f"""WITH chosen AS (
                SELECT DISTINCT {c.REQUEST_ID} FROM impressions WHERE {c.FEATURE_VALUES} IS NOT NULL AND {c.MODEL_VERSION} IS NOT NULL
                ORDER BY md5({c.REQUEST_ID}) LIMIT $n
            ) SELECT * FROM impressions SEMI JOIN chosen USING ({c.REQUEST_ID}) ORDER BY {c.SHOWN_AT}, {c.REQUEST_ID}, {c.RANK}""",
            params={"n": n},
        ).to_arrow_table()
    by_request: dict[str, list[dict[str, Any]]] = {}
    for row in found.to_pylist():
        by_request.setdefault(row[c.REQUEST_ID], []).append(row)
    for request, rows in by_request.items():
        values = [dict(row[c.FEATURE_VALUES]) for row in rows]
        names = tuple(name for name in values[0] if name not in TOLD)
        matrix = np.array([[np.nan if row.get(name) is None else row[name] for name in names] for row in values], np.float32)
        first, told = rows[0], values[0]
        yield Shown(
            request,
            first[c.USER_ID],
            first[c.SHOWN_AT],
            int(first[c.MODEL_VERSION]),
            tuple(row[c.ITEM_ID] for row in rows),
            names,
            matrix,
            np.array([np.nan if row[c.SCORE] is None else row[c.SCORE] for row in rows]),
            int(told[DEVICE]) if told.get(DEVICE) is not None else -1,
            bool(told.get(COUNTRY)),
            first[c.VARIANT] or "",
        )


def _model(home: Home, version: int, digest: str | None) -> TwoStage | None:
    """Return the model of a release; None where it is gone, or has no ranker."""
    if digest is None or not (home.bundles / digest).is_dir():
        return None
    model = choosing.loaded(home, version, digest).model
    return model if model.ranker is not None else None


def reorders(home: Home, variant: str) -> bool:
    """Tell whether an arm that a variant names may re-rank: as `experiments.toml` says; of an arm that it does not declare nobody knows."""
    try:
        declared = tomllib.loads(home.experiments.read_text(encoding="utf-8")) if home.experiments.is_file() else {}
        labels = [part.partition(":") for part in variant.split("|") if part and not part.startswith(ROLLOUT)]
        return any("rerank" in declared[name]["arms"][arm] for name, _, arm in labels)
    except (OSError, ValueError, KeyError, TypeError):
        return True


class _Past:
    """What the lake tells of some users, at any moment up to the last of their requests."""

    def __init__(self, home: Home, model: TwoStage, asked: list[Shown]) -> None:
        self.home, self.model, self.settings = home, model, config.load(home).training
        last = max(one.at for one in asked)
        dense = read(home, last, item_ids=model.item_ids)
        wanted = positions(np.unique([one.user_id for one in asked]), dense.user_ids)
        self.dense = replace(dense, events=dense.events.filter(pc.is_in(dense.events["user"], pa.array(wanted, pa.int32()))))
        with lake.connect(home, before=last) as engine:
            self.items, self.users = (
                profiles.versions(engine, table, ids) for table, ids in (("items", dense.item_ids), ("users", dense.user_ids))
            )

    def of(self, one: Shown) -> Histories | None:
        """Return the history before a request; None where the request said what no lake knows."""
        now = micros(one.at)
        known = pc.and_(pc.less(self.dense.events["at"], now), pc.less(self.dense.events["received"], now))
        then = arrays(Dense(self.dense.events.filter(known), self.dense.user_ids, self.dense.item_ids), one.at, self.settings)
        found = histories(described(then, self.items, self.users), np.array([one.user_id]))
        if one.country and found.users is not None and found.users[c.COUNTRY][0].as_py() is None:
            return None
        return replace(found, device=np.array([one.device], np.int8)) if one.device >= 0 else found


def _with(total: Skew, one: Shown, past: _Past, policy: ImpressionPolicy, wrong_of: Counter[str]) -> Skew:
    """Return a check with one more request."""
    model, users = past.model, past.of(one)
    ranker = model.ranker
    if users is None or ranker is None or set(ranker.features) != set(one.names):
        return replace(total, left_out=total.left_out + 1)
    was = one.values[:, [one.names.index(name) for name in ranker.features]]
    now = recomputed(past.home, model, users, one, ranker.features)
    differs = _differs(was, now)
    for at in np.flatnonzero(differs.any(axis=0)).tolist():
        wrong_of[ranker.features[at]] += int(differs[:, at].sum())
    score = np.asarray(ranker.score(was, np.array([len(was)], np.int32)), np.float64)
    # Rules of re-ranking give an item the score of its new place: scores then tell of items only where nothing was moved.
    ruled = bool(chain.active(model.rerank)) or reorders(past.home, one.variant)
    moved = ruled and bool((np.diff(score) > 0).any())
    off = np.zeros(0) if moved else np.abs(score - one.score) / np.maximum(1.0, np.abs(score))
    return replace(
        total,
        requests=total.requests + 1,
        values=total.values + was.size,
        wrong=total.wrong + int(differs.sum()),
        scores=total.scores + len(off),
        wrong_scores=total.wrong_scores + int((~(off <= policy.score_tolerance)).sum()),
        largest=float(np.max(off, initial=total.largest)) if not np.isnan(off).any() else float("inf"),
    )


def recomputed(home: Home, model: TwoStage, users: Histories, one: Shown, names: tuple[str, ...]) -> Floats:
    """Return float32 [n_items, n_features], what training would have seen of the shown items at that moment.

    An item that is not proposed has infinite values, which no logged ones equal.
    """
    proposed = model.propose(users)
    found = np.full((len(one.items), len(names)), np.inf, np.float32)
    if not len(proposed) or model.ranker is None:
        return found
    context = model.context(home, proposed, users, np.array([one.user_id]), one.at)
    blocks = [assemble(context, block) for block in proposed.blocks()]
    matrix = np.concatenate([chosen(values, made, model.ranker) for values, made in blocks])
    row_of = {item: row for row, item in enumerate(proposed.item.tolist())}
    for at, place in enumerate(positions(np.array(one.items), model.item_ids).tolist()):
        if place in row_of:
            found[at] = matrix[row_of[place]]
    return found


def _differs(was: Floats, now: Floats) -> np.ndarray[Any, np.dtype[np.bool_]]:
    near = np.abs(was - now) <= TOLERANCE * np.maximum(1.0, np.abs(was))
    return np.asarray(~(near | (np.isnan(was) & np.isnan(now))))
