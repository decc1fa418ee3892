"""What the real stages say of a pair that may never have met: the gate of a champion and a challenger, the drift check of a champion.

Both are asked through the functions that the loop itself uses, and each answer is kept under the
digests and settings it was made of: a replay that was killed asks nothing twice.

    reports/replay/gate/<digest of the question>.json
    reports/replay/drift/<digest of the question>.json
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from pipelines import config, publish
from pipelines.config import Home, Settings
from pipelines.decision_policies import GatePolicy
from pipelines.monitoring import drift
from pipelines.registry import bundle, evidence, gate, population, releases
from pipelines.replay.live import Tell, silent
from pipelines.replay.policies import Signals
from pipelines.window import floor_day


def signals(home: Home, bundles: Mapping[datetime, str], tell: Tell = silent) -> Signals:
    """Return what policies may ask, of the bundles of a state folder by as_of."""
    settings = config.load(home)

    def admits(champion: datetime, challenger: datetime, asked: int) -> tuple[bool, str]:
        question = [bundles[champion], bundles[challenger], challenger, asked, _policy(settings).model_dump(mode="json")]

        def answer() -> dict[str, Any]:
            tell(f"the gate on the champion of {champion:%Y-%m-%d}", challenger)
            return _verdict(home, bundles, champion, challenger, asked)

        found = _kept(home, "gate", question, answer)
        return found["verdict"] == gate.PROMOTE, found["reasons"][0]

    def drifted(champion: datetime, moment: datetime) -> str | None:
        question = [bundles[champion], moment, settings.drift.model_dump(mode="json")]

        def answer() -> dict[str, Any]:
            day = floor_day(moment)
            found = drift.compare(bundle.reference(home, bundles[champion]), population.columns(home, day), day, settings.drift)
            return {"verdict": found.verdict, "reasons": list(found.reasons)}

        found = _kept(home, "drift", question, answer)
        return "; ".join(found["reasons"]) if found["verdict"] == drift.DRIFT else None

    return Signals(drifted, admits)


def _policy(settings: Settings) -> GatePolicy:
    """Return the gate's policy with the incumbents that this shop has, as the promotion stage asks it."""
    there = tuple(name for name in settings.gate.incumbents if name in settings.retrieval.sources)
    return settings.gate.model_copy(update={"incumbents": there})


def _verdict(home: Home, bundles: Mapping[datetime, str], champion: datetime, challenger: datetime, asked: int) -> dict[str, Any]:
    """Return the gate's verdict on a pair on the challenger's judged window."""
    # The version is one no ledger has: what this champion has spent is the walk's to say, not the ledger's.
    baseline = releases.Pointer(-1, bundles[champion], champion.isoformat(), None, None, 0)
    found = evidence.weigh(home, challenger, baseline, bundle.load(home, bundles[challenger]))
    verdict = gate.judge(dataclasses.replace(found, earlier_decisions=asked), _policy(config.load(home)))
    return {"verdict": verdict.verdict, "track": verdict.track, "reasons": list(verdict.reasons), "figures": verdict.figures}


def _kept(home: Home, kind: str, question: list[Any], answer: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return an answer that was kept, or the one found now, which is kept."""
    name = hashlib.sha256(json.dumps(question, default=str, sort_keys=True).encode()).hexdigest()
    file = home.reports / "replay" / kind / f"{name}.json"
    if not file.is_file():
        publish.write_json(file, answer())
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found
