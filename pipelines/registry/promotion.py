"""The promotion stage: score champion and challenger now, on the same users, let the gate judge, act on it, and say why.

Every step can be killed and run again. The ledger holds a decision under its cycle and the
challenger's digest: a rerun finds it there and only repeats what hangs on it (report, alias, tags),
so one cycle is decided once. Pointer and ledger entry are one transaction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from pipelines import config, cycle, publish
from pipelines.config import Home, Settings
from pipelines.errors import StateError
from pipelines.registry import bundle, evidence, gate, ledger, projection, releases, review, rollouts, runs, version_page
from pipelines.window import stamp, utc

OFF: Final = "releases are off"
SAID: Final = ("verdict", "champion_before", "champion_after", "reasons", "figures", "track", "challenger", "outcome", "trigger")


def decide(home: Home, as_of: datetime, *, again: str | None = None) -> dict[str, Any]:
    """Put the challenger of a cycle before the gate and act on the verdict as `release.mode` has it; return the decision.

    Its `outcome` says what became of it: promoted, kept, waiting for review, rejected, unanswered, releases are off.

    Args:
        again: judge anew what was decided before: after a rollback, say, or with another policy. Any text that names this
            request, so that a rerun of it finds its own decision.

    Raises:
        StateError: no bundle was built for this moment, a bundle is damaged, or the ledger is not the one that was anchored.
        StaleFence: another process released something meanwhile; run again to be judged against that.
    """
    with cycle.stage(home, as_of, "gate") as record:
        ledger.check_anchor(home)
        settings = config.load(home)
        review.expire(home, settings.release)
        found = _challenger(home, as_of)
        key = _key(as_of, found["digest"], again)
        asked_anew = again is not None and ledger.decision(home, key) is None
        decision = None if asked_anew else standing(home, as_of, found["digest"])
        if decision is None:
            decision = _decide(home, as_of, found, key, settings)
        said = {name: decision[name] for name in (*SAID, "author", "words") if name in decision}
        record.update(said)
        publish.write_json(report_file(home, as_of), said)
        _project(home, decision)
    runs.log_cycle(home, as_of)  # after the stage, so that the gate's own record is among them
    return said


def answer(home: Home, version: str | int, *, approved: bool, author: str, words: str) -> dict[str, Any]:
    """Take a person's answer to a review and return the decision as it then stands.

    An approval of a challenger that was judged against a champion of before is refused, and the challenger judged again.

    Raises:
        StateError: no review of that version is open, its time is up, or the bundle is damaged.
    """
    review.expire(home, config.load(home).release)
    entry = review.of_version(home, version)
    settle(home, entry, approved=approved, author=author, words=words)
    return decide(home, utc(entry["as_of"]))


def heard(home: Home, key: str, *, approved: bool, author: str | None, words: str) -> bool:
    """Take the answer that Airflow brings to one review; False where that one is closed, which leaves everything as it is.

    Args:
        key: of the ledger entry that was shown. A cycle may by now wait with another, judged against another champion.
        author: None where nobody answered in time.
    """
    entry = next((one for one in review.waiting(home) if one["key"] == key), None)
    if entry is None:
        return False
    if author is None:
        review.close(home, entry, "no answer in time: the champion stays")
    else:
        settle(home, entry, approved=approved, author=author, words=words)
    return True


def settle(home: Home, entry: Mapping[str, Any], *, approved: bool, author: str, words: str) -> None:
    """Answer a review, without a word to MLflow."""
    if approved:
        sound(home, entry["challenger_digest"])
        review.approve(home, entry, author=author, words=words)
    else:
        review.reject(home, entry, author=author, words=words)


def sound(home: Home, digest: str) -> None:
    """Prove that a bundle can serve, before the pointer moves to it.

    Raises:
        StateError: it is damaged, or does not load and answer as it did when it was built.
    """
    bundle.rehearse(home, digest)


def report_file(home: Home, as_of: datetime) -> Path:
    """Return where a cycle's decision is kept for readers."""
    return home.reports / "decisions" / f"{stamp(as_of)}.json"


def standing(home: Home, as_of: datetime, digest: str) -> dict[str, Any] | None:
    """Return what was decided on a challenger and still holds, with its `outcome`; None where it is to be judged."""
    found = _decisions(home, as_of, digest)
    if not found:
        return None
    decision = found[-1]
    if waited := decision["kind"] == ledger.WAITING:
        given = ledger.decision(home, review.answer_key(decision["key"]))
        if given is None:
            return {**decision, "outcome": ledger.WAITING}
        decision = {**decision, **given}
    if decision["kind"] in rollouts.RUNNING:
        return _rolled_out(home, decision)
    if waited and decision["kind"] == ledger.REFUSED:  # approved, but judged against a champion of before
        return None
    return {**decision, "outcome": decision.get("outcome", decision["kind"])}


def _rolled_out(home: Home, decision: dict[str, Any]) -> dict[str, Any] | None:
    """Return what became of a challenger that was to be rolled out; None where the champion changed meanwhile: it is judged again."""
    ended, now = ledger.decision(home, rollouts.end_key(decision["key"])), rollouts.current(home)
    if ended is not None:
        said = {name: ended[name] for name in ("champion_after", "author") if name in ended}
        return {**decision, **said, "reasons": [*decision["reasons"], *ended["reasons"]], "outcome": ended["kind"]}
    return {**decision, "outcome": now.kind} if now is not None and now.key == decision["key"] else None


def _decisions(home: Home, as_of: datetime, digest: str) -> list[dict[str, Any]]:
    prefix = _key(as_of, digest, None)
    return [entry for entry in ledger.history(home) if entry["key"] == prefix or (entry["key"] or "").startswith(f"{prefix}/")]


def _key(as_of: datetime, digest: str, again: str | None) -> str:
    """Return what a decision is found under: the cycle, the challenger, and which asking it is."""
    asking = "" if again is None else "/" + hashlib.sha256(again.encode()).hexdigest()[:12]
    return f"decide/{utc(as_of).isoformat()}/{digest}{asking}"


def _challenger(home: Home, as_of: datetime) -> dict[str, Any]:
    built = [one for one in cycle.records(home, as_of, "bundle") if one["state"] == "done"]
    if not built:
        raise StateError(
            f"challenger of {utc(as_of):%Y-%m-%d}", found="none", allowed="a bundle", hint=f"reloop train --as-of {utc(as_of):%Y-%m-%d}"
        )
    return built[-1]


def _decide(home: Home, as_of: datetime, found: Mapping[str, Any], key: str, settings: Settings) -> dict[str, Any]:
    """Judge and act, and record it under `key`, or beside what was found there: an approval that came too late."""
    version, digest = found["version"], found["digest"]
    if ledger.decision(home, key) is not None:
        key += f"/{len(_decisions(home, as_of, digest)) + 1}"
    baseline = releases.pointer(home)
    body: dict[str, Any] = {
        "as_of": utc(as_of).isoformat(),
        "challenger": version,
        "challenger_digest": digest,
        "champion_before": baseline.version,
        "champion_after": baseline.version,
        "fence_before": baseline.fence,
        "trigger": _trigger(home, as_of),
    }
    if refusal := _pointless(home, as_of, version, digest, baseline):
        verdict = gate.Verdict(gate.KEEP, "superiority", (refusal,), {})
    else:
        challenger = bundle.load(home, digest)
        verdict = gate.judge(evidence.weigh(home, as_of, baseline, challenger), settings.gate)
    body |= {"verdict": verdict.verdict, "track": verdict.track, "reasons": list(verdict.reasons), "figures": verdict.figures}
    if verdict.promote:
        sound(home, digest)
        _act(home, baseline, key, body, settings)
    else:
        releases.keep(home, key, {**body, "outcome": ledger.KEPT})
    decided = standing(home, as_of, digest)
    if decided is None:
        raise StateError("ledger", found=f"no entry {key}", allowed="the decision that was just recorded")
    return decided


def _act(home: Home, baseline: releases.Pointer, key: str, body: dict[str, Any], settings: Settings) -> None:
    """Do what follows from a yes: release, roll out, ask a person, or nothing."""
    mode, first = settings.release.mode, rollouts.first(settings.release.rollout, settings.serving.rollout.shares)
    word = review.word_on(home, body["challenger"])
    if mode == "off":
        reasons = [*body["reasons"], f"{OFF} (release.mode): the champion stays"]
        releases.keep(home, key, {**body, "reasons": reasons, "outcome": OFF})
    elif mode == "review" and word is None:
        for older in review.waiting(home):
            review.close(home, older, f"version {body['challenger']} was judged before anybody had answered")
        ledger.record(home, ledger.WAITING, key, {**body, "baseline": asdict(baseline)})
    else:
        said = {} if word is None else {"author": word["author"], "words": word["words"]}
        released = {**body, **said, "champion_after": body["challenger"], "outcome": ledger.PROMOTED}
        version, digest = body["challenger"], body["challenger_digest"]
        if first is not None and baseline.version is not None:
            kind, share = first
            rollouts.begin(
                home, baseline, key=key, kind=kind, share=share, version=version, digest=digest, as_of=body["as_of"], body={**body, **said}
            )
            return
        releases.flip(home, baseline, version=version, digest=digest, as_of=body["as_of"], key=key, body=released)


def _trigger(home: Home, as_of: datetime) -> dict[str, Any] | None:
    """Return why this challenger was trained, as the trigger recorded it; None where a person just trained it."""
    found = [record for record in cycle.records(home, as_of, "trigger") if record["state"] == "done" and record["due"]]
    return (
        {name: value for name, value in found[-1].items() if name not in {"stage", "key", "state", "error", "seconds"}} if found else None
    )


def _pointless(home: Home, as_of: datetime, version: int, digest: str, baseline: releases.Pointer) -> str | None:
    """Return why there is nothing to compare, None if there is."""
    word = review.word_on(home, version)
    if word is not None and word["kind"] == ledger.REJECTED:
        return f"version {version} was rejected by {word['author']}: {'; '.join(word['words'])}"
    if baseline.digest == digest:
        return f"the challenger is the champion already, version {baseline.version}"
    if baseline.as_of is not None and utc(as_of) < utc(baseline.as_of):
        return f"version {version} was trained as of {utc(as_of):%Y-%m-%d}, before the champion ({utc(baseline.as_of):%Y-%m-%d}): a release never goes back in time"
    return None


def _project(home: Home, decision: Mapping[str, Any]) -> None:
    """Make MLflow say what was decided: aliases follow the pointer, the reasons go to the version. Safe to repeat."""
    projection.sync(home)
    tags = {
        "gate.verdict": decision["verdict"],
        "gate.outcome": decision["outcome"],
        "gate.track": decision["track"],
        "gate.reasons": "\n".join(decision["reasons"]),
        "gate.champion_before": decision["champion_before"],
    }
    if because := (decision.get("trigger") or {}).get("reasons"):
        tags["gate.trigger"] = "\n".join(because)
    tags |= {f"gate.{name}": value for name, value in decision["figures"].items() if isinstance(value, int | float)}
    version_page.write(home, decision["challenger"], decision.get("challenger_digest") or decision["digest"], tags)
