"""The promotion stage: score champion and challenger now, on the same users, let the gate judge, flip the pointer, and say why.

Every step can be killed and run again. The ledger holds a decision under its cycle and the
challenger's digest: a rerun finds it there and only repeats what hangs on it (report, alias, tags),
so one cycle is decided once. Pointer and ledger entry are one transaction.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq

from pipelines import columns as c
from pipelines import config, cycle, publish
from pipelines.config import Home, Settings
from pipelines.datasets import universe
from pipelines.datasets.interactions import Ids, Interactions, positions, strings
from pipelines.datasets.labels import Labels
from pipelines.datasets.split import JUDGE
from pipelines.datasets.universe import Universe
from pipelines.decision_policies import GatePolicy
from pipelines.errors import StateError
from pipelines.evaluation import metrics
from pipelines.ranking import fairness_report, judging, two_stage
from pipelines.ranking.two_stage import TwoStage
from pipelines.registry import bundle, gate, releases, runs
from pipelines.registry.gate import Evidence, Scores
from pipelines.window import DAY, utc

K: Final = 10
TAIL_SHARE: Final = 0.5  # of the events before the judged window: what the most popular items gather is the head
LIGHT_QUANTILE: Final = 1 / 3  # of the judged users, those with the shortest histories


@dataclass(frozen=True)
class Scored:
    """One model on the judged window.

    Attributes:
        ndcg: float64 [n_users].
        tail: float64 [n_users], NDCG when only tail items count; NaN for a user who chose none.
        coverage: share of the catalogue in anyone's list.
    """

    ndcg: Scores
    tail: Scores
    coverage: float


@dataclass(frozen=True)
class Bench:
    """What both models are measured on: the same users, labels, catalogue and slices.

    Attributes:
        truth: labels of the judged window.
        tail_truth: the same with tail items only; a row a user, possibly empty.
        light: bool [n_users].
    """

    world: Universe
    truth: Labels
    tail_truth: Labels
    light: np.ndarray[Any, np.dtype[np.bool_]]
    cutoff: datetime

    def score(self, home: Home, model: TwoStage) -> Scored:
        """Rank for every judged user from what was known at the cutoff, and measure."""
        lists = two_stage.rank_users(home, model, self.truth.user_ids, self.cutoff, K)
        item = np.where(lists.item_ids == "", -1, positions(lists.item_ids.ravel(), self.world.item_ids).reshape(lists.item_ids.shape))
        if (lists.item_ids[item < 0] != "").any():
            raise StateError("lists of a bundle", found="items that the catalogue does not have", allowed="items it knows")
        shown = np.unique(item[item >= 0])
        return Scored(_ndcg(item, self.truth), _ndcg(item, self.tail_truth), len(shown) / max(len(self.world.item_ids), 1))


def _ndcg(item: np.ndarray[Any, Any], truth: Labels) -> Scores:
    return metrics.ndcg(metrics.judge(item, truth.indptr, truth.item, truth.gain), K)


def bench(home: Home, as_of: datetime, settings: Settings) -> Bench:
    """Return the judged window of a training run, with its slices."""
    world = universe.load(home, as_of)
    cutoff = world.fold(JUDGE).cutoff
    truth = world.labels(JUDGE)
    known = world.interactions(cutoff, settings.training)
    head = _head(known)
    kept = ~head[truth.item]
    indptr = np.concatenate([[0], np.cumsum(kept)])[truth.indptr].astype(np.int64)
    tail = Labels(truth.user_ids, truth.item_ids, indptr, truth.item[kept], truth.gain[kept])
    per_user = np.bincount(known.user, minlength=len(known.user_ids))
    length = per_user[positions(truth.user_ids, known.user_ids)]
    light = length <= np.quantile(length, LIGHT_QUANTILE) if len(length) else np.zeros(0, bool)
    return Bench(world, truth, tail, light, cutoff)


def _head(known: Interactions) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return bool [n_items], the most popular items that together gather `1 - TAIL_SHARE` of the events."""
    counts = np.bincount(known.item, minlength=len(known.item_ids))
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    head = np.zeros(len(counts), dtype=bool)
    head[order] = before < (1 - TAIL_SHARE) * counts.sum()
    return head


def incumbents(home: Home, as_of: datetime, names: list[str], users: Ids) -> dict[str, Scores]:
    """Return NDCG@10 of trivial recommenders for the judged users, in their order; those not measured are left out.

    Raises:
        StateError: the run was not evaluated, or for other users.
    """
    folder = judging.folder(home, as_of)
    publish.manifest(folder, verify=True)
    table = pq.read_table(folder / "per_user.parquet")
    if not np.array_equal(strings(table[c.USER_ID]), users):
        raise StateError(
            str(folder), found="other users than the judged ones", allowed="the same evaluation", hint="run the evaluation again"
        )
    there = [name for name in names if f"ndcg_at_{K}__{name}" in table.column_names]
    return {name: np.asarray(table[f"ndcg_at_{K}__{name}"].to_numpy(), dtype=np.float64) for name in there}


def weigh(home: Home, as_of: datetime, baseline: releases.Pointer, challenger: TwoStage) -> Evidence:
    """Return the evidence of one decision: both models scored now, the champion never by a stored figure."""
    settings = config.load(home)
    judged = bench(home, as_of, settings)
    new = judged.score(home, challenger)
    broken = fairness_report.broken(home, as_of, settings.fairness)
    wanted = [*settings.gate.incumbents, settings.gate.baseline]
    trivial = incumbents(home, as_of, wanted, judged.truth.user_ids)
    if baseline.digest is None or baseline.as_of is None:
        return Evidence(challenger=new.ndcg, incumbents=trivial, broken=broken, seed=settings.training.seed)
    old = judged.score(home, bundle.load(home, baseline.digest))
    has_tail = ~np.isnan(old.tail)
    return Evidence(
        challenger=new.ndcg,
        champion=old.ndcg,
        incumbents=trivial,
        slices={"light_users": (old.ndcg[judged.light], new.ndcg[judged.light]), "tail_items": (old.tail[has_tail], new.tail[has_tail])},
        coverage=(old.coverage, new.coverage),
        champion_age_days=(utc(as_of) - utc(baseline.as_of)) / DAY,
        broken=broken,
        earlier_decisions=tested(home, baseline.version),
        seed=settings.training.seed,
    )


def tested(home: Home, version: int | None) -> int:
    """Return how often a champion has been tested in its present reign: what alpha spending counts."""
    count = 0
    for entry in releases.history(home):
        if entry["kind"] in {releases.PROMOTED, releases.ROLLED_BACK}:
            count = 0
        elif entry["kind"] == releases.KEPT and entry["champion_before"] == version and entry["figures"].get("confidence") is not None:
            count += 1
    return count


def _policy(settings: Settings) -> GatePolicy:
    """Return the policy with the incumbents that this shop has: a source that is switched off cannot be measured."""
    there = tuple(name for name in settings.gate.incumbents if name in settings.retrieval.sources)
    return settings.gate.model_copy(update={"incumbents": there})


def decide(home: Home, as_of: datetime) -> dict[str, Any]:
    """Put the challenger of a cycle before the gate and act on the verdict; return the decision.

    Raises:
        StateError: no bundle was built for this moment, or a bundle is damaged.
        StaleFence: another process released something meanwhile; run again to be judged against that.
    """
    with cycle.stage(home, as_of, "gate") as record:
        found = _challenger(home, as_of)
        key = f"decide/{utc(as_of).isoformat()}/{found['digest']}"
        decision = releases.decision(home, key)
        if decision is None:
            decision = _decide(home, as_of, found["version"], found["digest"], key)
        record |= {
            name: decision[name] for name in ("verdict", "champion_before", "champion_after", "reasons", "figures", "track", "challenger")
        }
        publish.write_json(report_file(home, as_of), {name: decision[name] for name in record})
        _project(home, decision)
        answer = dict(record)
    runs.log_cycle(home, as_of)  # after the stage, so that the gate's own record is among them
    return answer


def report_file(home: Home, as_of: datetime) -> Path:
    """Return where a cycle's decision is kept for readers."""
    return home.reports / "decisions" / f"{utc(as_of):%Y-%m-%dT%H%M%S}.json"


def _challenger(home: Home, as_of: datetime) -> dict[str, Any]:
    built = [one for one in cycle.records(home, as_of, "bundle") if one["state"] == "done"]
    if not built:
        raise StateError(
            f"challenger of {utc(as_of):%Y-%m-%d}", found="none", allowed="a bundle", hint=f"reloop train --as-of {utc(as_of):%Y-%m-%d}"
        )
    return built[-1]


def _decide(home: Home, as_of: datetime, version: int, digest: str, key: str) -> dict[str, Any]:
    baseline = releases.pointer(home)
    body: dict[str, Any] = {
        "as_of": utc(as_of).isoformat(),
        "challenger": version,
        "champion_before": baseline.version,
        "fence_before": baseline.fence,
    }
    if refusal := _pointless(as_of, version, digest, baseline):
        verdict = gate.Verdict(gate.KEEP, "superiority", (refusal,), {})
    else:
        challenger = bundle.load(home, digest)
        verdict = gate.judge(weigh(home, as_of, baseline, challenger), _policy(config.load(home)))
    body |= {
        "verdict": verdict.verdict,
        "track": verdict.track,
        "reasons": list(verdict.reasons),
        "figures": verdict.figures,
        "challenger_digest": digest,
    }
    body["champion_after"] = version if verdict.promote else baseline.version
    if verdict.promote:
        releases.flip(home, baseline, version=version, digest=digest, as_of=utc(as_of).isoformat(), key=key, body=body)
    else:
        releases.keep(home, key, body)
    return body


def _pointless(as_of: datetime, version: int, digest: str, baseline: releases.Pointer) -> str | None:
    """Return why there is nothing to compare, None if there is."""
    if baseline.digest == digest:
        return f"the challenger is the champion already, version {baseline.version}"
    if baseline.as_of is not None and utc(as_of) < utc(baseline.as_of):
        return f"version {version} was trained as of {utc(as_of):%Y-%m-%d}, before the champion ({utc(baseline.as_of):%Y-%m-%d}): a release never goes back in time"
    return None


def _project(home: Home, decision: dict[str, Any]) -> None:
    """Make MLflow say what was decided: aliases follow the pointer, the reasons go to the version. Safe to repeat."""
    releases.sync(home)
    tags = {
        "gate.verdict": decision["verdict"],
        "gate.track": decision["track"],
        "gate.reasons": "\n".join(decision["reasons"]),
        "gate.champion_before": decision["champion_before"],
    }
    tags |= {f"gate.{name}": value for name, value in decision["figures"].items() if isinstance(value, int | float)}
    runs.describe_version(
        home, decision["challenger"], tags, f"**{decision['verdict']}**\n\n" + "\n".join(f"- {reason}" for reason in decision["reasons"])
    )
