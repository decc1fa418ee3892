"""A person between the gate and the pointer: challengers that wait, and the answers to them.

A challenger that the gate would promote under `release.mode = "review"` is a ledger entry that waits. Its answer is
another entry, under a key of its own, so of two answers at once the first counts. An approval flips the pointer
against the fence that the gate judged by: where the champion has changed since, it is refused, and the gate judges again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pipelines import config
from pipelines.config import Home
from pipelines.decision_policies import ReleasePolicy
from pipelines.errors import StaleFence, StateError
from pipelines.registry import ledger, releases, rollouts
from pipelines.registry.markdown import plain
from pipelines.window import stamp, utc

NOBODY = "nobody"


def answer_key(decision_key: str) -> str:
    """Return the key of the answer to a decision that waits."""
    return f"answer/{decision_key}"


def waiting(home: Home) -> list[dict[str, Any]]:
    """Return the decisions that wait for a person, oldest first."""
    history = ledger.history(home)
    answered = {entry["answers"] for entry in history if "answers" in entry}
    return [entry for entry in history if entry["kind"] == ledger.WAITING and entry["key"] not in answered]


def of_version(home: Home, version: str | int) -> dict[str, Any]:
    """Return the decision on a version that waits for a person.

    Raises:
        StateError: nothing of that version waits.
    """
    found = waiting(home)
    for entry in reversed(found):
        if str(entry["challenger"]) == str(version):
            return entry
    open_ones = [str(entry["challenger"]) for entry in found]
    raise StateError(
        f"review of version {version}",
        found="nothing that waits for an answer",
        allowed=f"one of the versions {', '.join(open_ones)}" if open_ones else "a review; none is open",
        hint="`reloop releases show VERSION` tells what became of it",
    )


def approve(home: Home, entry: Mapping[str, Any], *, author: str, words: str) -> bool:
    """Let the challenger of a decision that waits serve; False where the champion has changed since it was judged.

    Raises:
        StateError: somebody has answered already.
    """
    baseline = releases.Pointer(**entry["baseline"])
    key = answer_key(entry["key"])
    _unanswered(home, entry)
    body = {**_carried(entry), "champion_after": entry["challenger"], "author": author, "words": [words], "answers": entry["key"]}
    settings = config.load(home)
    first = rollouts.first(settings.release.rollout, settings.serving.rollout.shares)
    try:
        if first is not None and baseline.version is not None:
            kind, share = first
            version, digest, as_of = entry["challenger"], entry["challenger_digest"], entry["as_of"]
            rollouts.begin(home, baseline, key=key, kind=kind, share=share, version=version, digest=digest, as_of=as_of, body=body)
            return True
        releases.flip(
            home,
            baseline,
            version=entry["challenger"],
            digest=entry["challenger_digest"],
            as_of=entry["as_of"],
            key=key,
            body=body,
            refusal_key=key,
        )
    except StaleFence as stale:
        refused = {**body, "champion_after": body["champion_before"], "refusal": str(stale)}
        ledger.record(home, ledger.REFUSED, key, refused)  # no second entry where the flip has left one
        answer = ledger.decision(home, key)
        return answer is not None and answer["kind"] == ledger.PROMOTED  # another approved at the same moment
    return True


def reject(home: Home, entry: Mapping[str, Any], *, author: str, words: str) -> None:
    """Keep the champion, because a person says so.

    Raises:
        StateError: somebody has answered already.
    """
    _unanswered(home, entry)
    _close(home, entry, ledger.REJECTED, author, words)


def close(home: Home, entry: Mapping[str, Any], words: str) -> None:
    """Keep the champion, because nobody has answered; a person's answer that came first stands."""
    _close(home, entry, ledger.UNANSWERED, NOBODY, words)


def expire(home: Home, policy: ReleasePolicy) -> None:
    """Close what has waited for longer than `review_hours`, by the clock of the database."""
    now = None
    for entry in waiting(home):
        now = now or ledger.clock(home)
        hours = (now - utc(entry["recorded_at"])).total_seconds() / 3600
        if hours > policy.review_hours:
            close(home, entry, f"no answer within {policy.review_hours:g} hours: the champion stays")


def _unanswered(home: Home, entry: Mapping[str, Any]) -> None:
    if (answer := ledger.decision(home, answer_key(entry["key"]))) is not None:
        raise StateError(
            f"review of version {entry['challenger']}",
            found=f"answered already: {answer['kind']} by {answer.get('author', 'the gate')}",
            allowed="one answer a review",
        )


def _carried(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an answer repeats of the decision, so that its entry can be read alone."""
    names = ("as_of", "challenger", "challenger_digest", "champion_before", "fence_before", "verdict", "track", "reasons", "trigger")
    return {name: entry[name] for name in names if name in entry}


def _close(home: Home, entry: Mapping[str, Any], kind: str, author: str, words: str) -> None:
    body = {**_carried(entry), "champion_after": entry["champion_before"], "author": author, "words": [words], "answers": entry["key"]}
    ledger.record(home, kind, answer_key(entry["key"]), body)


def word_on(home: Home, version: int) -> dict[str, Any] | None:
    """Return the newest word of a person on a version, spoken outside a review (MLflow's `validation_status`); None without one."""
    spoken = [
        entry
        for entry in ledger.history(home)
        if entry["kind"] in {ledger.APPROVED, ledger.REJECTED} and entry.get("challenger") == version and "answers" not in entry
    ]
    return spoken[-1] if spoken else None


def subject(entry: Mapping[str, Any]) -> str:
    """Return the headline of a review."""
    against = f"version {entry['champion_before']}" if entry["champion_before"] is not None else "popularity"
    return f"Shall version {entry['challenger']} (as of {entry['as_of'][:10]}) replace {against}?"


def page(home: Home, entry: Mapping[str, Any]) -> str:
    """Return what a reviewer needs to decide, as Markdown: verdict, evidence, why it was trained, where to look further."""
    return "\n".join(_lines(home, entry))


def _lines(home: Home, entry: Mapping[str, Any]) -> Iterator[str]:
    as_of = entry["as_of"][:10]
    yield f"The gate says **{entry['verdict']}** (track: {entry['track']}).\n"
    yield "### What was measured\n"
    yield from (f"- {plain(reason)}" for reason in entry["reasons"])
    if because := (entry.get("trigger") or {}).get("reasons"):
        yield "\n### Why it was trained\n"
        yield from (f"- {plain(reason)}" for reason in because)
    yield "\n### Where to look further\n"
    yield f"- MLflow: {_mlflow(home)}/#/models/reloop/versions/{entry['challenger']}" if _mlflow(home) else "- MLflow: `make up`"
    named = stamp(utc(entry["as_of"]))
    for name, path in {
        "fairness": home.reports / "fairness" / f"{named}.html",
        "records of the cycle": home.reports / "cycles" / named,
    }.items():
        yield f"- {name}: `{path}`"
    yield f"- command line: `reloop releases show {entry['challenger']}`, `reloop explain`"
    figures = {name: value for name, value in entry.get("figures", {}).items() if isinstance(value, int | float | str)}
    if figures:
        yield "\n### Figures\n\n| | |\n|---|---|"
        yield from (f"| {name.replace('_', ' ')} | {_figure(value)} |" for name, value in sorted(figures.items()))
    yield f"\nNo answer keeps the champion. Cycle {as_of}, bundle `{entry['challenger_digest'][:12]}`."


def _figure(value: float | str) -> str:
    return plain(value) if isinstance(value, str) else f"{value:.4g}" if isinstance(value, float) else f"{value:,}"


def _mlflow(home: Home) -> str | None:
    """Return the address of MLflow's pages, if `make up` runs them."""
    file = home.root / "stack.json"
    return json.loads(file.read_text(encoding="utf-8")).get("mlflow") if file.is_file() else None
