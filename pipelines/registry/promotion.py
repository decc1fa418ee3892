"""The promotion stage: score champion and challenger now, on the same users, let the gate judge, flip the pointer, and say why.

Every step can be killed and run again. The ledger holds a decision under its cycle and the
challenger's digest: a rerun finds it there and only repeats what hangs on it (report, alias, tags),
so one cycle is decided once. Pointer and ledger entry are one transaction.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from pipelines import config, cycle, publish
from pipelines.config import Home, Settings
from pipelines.decision_policies import GatePolicy
from pipelines.errors import StateError
from pipelines.registry import bundle, evidence, gate, releases, runs
from pipelines.window import utc


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
        verdict = gate.judge(evidence.weigh(home, as_of, baseline, challenger), _policy(config.load(home)))
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
