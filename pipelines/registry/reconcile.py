"""What people set by hand in MLflow's pages, honoured and put on record; what MLflow lost, told again.

    alias `champion` moved to a version     that bundle is proven, and serves
    tag `validation_status` = approved      answers the review of that version; spoken early, it is the answer in advance
    tag `validation_status` = rejected      that version is never promoted; if it serves, the one before serves again
    tags `validation_by`, `validation_reason`   who says so, and why; MLflow itself keeps no name

What we told MLflow last is known (`registry.projection`), so an alias that lags behind the pointer, or is gone, is
told apart from one that was moved. What cannot be honoured is refused, recorded, and put back.
"""

from __future__ import annotations

from typing import Any, Final

from pipelines import config, cycle
from pipelines.config import Home
from pipelines.decision_policies import ReleasePolicy
from pipelines.errors import StaleFence, StateError
from pipelines.registry import bundle_folder, ledger, projection, promotion, release_database, releases, review, rollback, tracking
from pipelines.window import utc

SOMEBODY: Final = "somebody in MLflow"
BY: Final = "validation_by"
WHY: Final = "validation_reason"


def reconcile(home: Home) -> list[str]:
    """Honour or refuse what was set by hand since the last time, tell MLflow what it lost; return what was done, in sentences.

    Raises:
        StateError: the ledger is not the one that was anchored: an older backup was restored, so nothing can be told apart.
    """
    ledger.check_anchor(home)
    policy = config.load(home).release
    review.expire(home, policy)
    with projection.alone(home) as held:
        if not held:
            return ["another process speaks to MLflow; it will see to it"]
        tracking.ensure_model(home)
        said, answered, over = _statuses(home, policy)
        moved, mine = _alias(home, policy)
        projection.tell(home, over=over | mine)
    for as_of in answered:
        promotion.decide(home, utc(as_of))  # its records say how it ended; what was approved too late is judged again
    return [*said, *moved]


def _alias(home: Home, policy: ReleasePolicy) -> tuple[list[str], frozenset[str]]:
    """Follow the alias `champion` where a person moved it; return what was done, and what to write over."""
    name = f"alias/{tracking.CHAMPION}"
    now = releases.pointer(home)
    found = tracking.client(home).get_registered_model(tracking.MODEL).aliases.get(tracking.CHAMPION)
    if found is None:
        lost = now.version is not None and name in release_database.told(home)
        return ([f"alias {tracking.CHAMPION} was gone: told again"] if lost else []), frozenset()
    found = str(found)
    if found == str(now.version) or projection.is_ours(home, name, found, adopt=now.version is not None):
        return [], frozenset()
    tags = _tags(home, found)
    body = {
        "challenger": int(found),
        "champion_before": now.version,
        "author": tags.get(BY) or SOMEBODY,
        "words": [tags.get(WHY) or f"alias {tracking.CHAMPION} set to version {found} by hand"],
    }
    try:
        digest, as_of = _ours(home, policy, tags, found)
        promotion.sound(home, digest)
    except (StateError, OSError) as wrong:
        said = f"alias {tracking.CHAMPION} on version {found} is refused and put back: {wrong}"
        ledger.record(home, ledger.REFUSED, None, {**body, "champion_after": now.version, "refusal": said})
        return [said], frozenset({name})
    released = {**body, "champion_after": int(found), "as_of": as_of, "reasons": _direction(as_of, now)}
    try:
        releases.flip(home, now, version=int(found), digest=digest, as_of=as_of, key=None, body=released, kind=ledger.BY_HAND)
    except StaleFence as stale:
        return [f"alias {tracking.CHAMPION} on version {found}: {stale}"], frozenset()
    return [f"version {found} serves: {body['author']} set alias {tracking.CHAMPION}"], frozenset()


def _direction(as_of: str, now: releases.Pointer) -> list[str]:
    if now.as_of is None:
        return ["set by hand: the gate has released nothing yet"]
    return ["set by hand: an earlier release" if utc(as_of) < utc(now.as_of) else "set by hand: the gate was overruled"]


def _tags(home: Home, version: str) -> dict[str, str]:
    """Return the tags of a model version; none of one that is not there."""
    from mlflow.exceptions import MlflowException

    try:
        return dict(tracking.client(home).get_model_version(tracking.MODEL, version).tags)
    except MlflowException as gone:
        if gone.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return {}


def _ours(home: Home, policy: ReleasePolicy, tags: dict[str, str], version: str) -> tuple[str, str]:
    """Return digest and as_of of a version that our bundle stage registered; of the tags, which anybody may edit, neither is believed.

    Raises:
        StateError: it was registered by something else, or rejected; its tag names the bundle of another version; or nothing that
            is set by hand is honoured here.
    """
    if policy.by_hand != "honour":
        raise StateError("alias set by hand", found="not honoured here (release.by_hand)", allowed="the gate or `reloop review`")
    if tags.get(projection.STATUS) == projection.REJECTED:
        raise StateError(
            f"version {version}",
            found=f"tag {projection.STATUS} = {projection.REJECTED}",
            allowed="a version that nobody rejected",
            hint=f"set {projection.STATUS} to {projection.APPROVED} first",
        )
    if not tags.get("digest"):
        raise StateError(f"version {version}", found="no bundle of ours: the tag digest is missing", allowed="a version of `reloop train`")
    return _of_bundle(home, tags["digest"], int(version))


def _of_bundle(home: Home, digest: str, version: int) -> tuple[str, str]:
    """Return digest and as_of of a version's bundle, as its signed manifest has them.

    Raises:
        StateError: it is gone, damaged or not signed here; or neither ledger nor cycle knows it as the bundle of this version.
    """
    as_of = utc(bundle_folder.document(home, digest, bundle_folder.FACTS_FILE)["as_of"])
    known = {
        (str(entry[number]), str(entry[content]))
        for entry in ledger.history(home)
        for number, content in (("challenger", "challenger_digest"), ("version", "digest"))
        if entry["kind"] != ledger.REFUSED and entry.get(number) is not None and entry.get(content)
    }
    known |= {(str(one.get("version")), str(one.get("digest"))) for one in cycle.records(home, as_of, "bundle") if one["state"] == "done"}
    if (str(version), digest) not in known:
        others = sorted({number for number, content in known if content == digest})
        raise StateError(
            f"version {version}",
            found=f"tag digest = {digest[:12]}, "
            + (f"the bundle of version {', '.join(others)}" if others else "which was built as no version"),
            allowed="the digest that `reloop train` has set",
        )
    return digest, as_of.isoformat()


def _as_of(home: Home, tags: dict[str, str], version: int) -> str | None:
    """Return the cycle of a version, None where its bundle does not tell."""
    try:
        return _of_bundle(home, tags.get("digest", ""), version)[1]
    except (StateError, OSError):
        return None


def _statuses(home: Home, policy: ReleasePolicy) -> tuple[list[str], list[str], frozenset[str]]:
    """Take the words that people left in the tag `validation_status`; return what was done, which cycles' reviews it answers, what to write over."""
    said: list[str] = []
    answered: list[str] = []
    over: set[str] = set()
    known = projection.marks(ledger.history(home))
    for one in tracking.client(home).search_model_versions(f"name = '{tracking.MODEL}'"):
        version, tags = int(one.version), dict(one.tags)
        word, name = tags.get(projection.STATUS, "").strip().lower(), f"tag/{version}/{projection.STATUS}"
        if word not in {projection.APPROVED, projection.REJECTED} or known.get((str(version), projection.STATUS)) == word:
            continue
        if projection.is_ours(home, name, tags[projection.STATUS]):
            continue
        if policy.by_hand != "honour":
            over.add(name)
            continue
        open_ones = [entry for entry in review.waiting(home) if entry["challenger"] == version]
        answered += [entry["as_of"] for entry in open_ones]
        if open_ones:
            said.append(_answered(home, open_ones[-1], word, tags))
        else:
            said.append(_word(home, policy, version, word, tags))
    return said, answered, frozenset(over)


def _spoken(word: str, tags: dict[str, str]) -> tuple[str, str]:
    """Return who says a word, and why."""
    return tags.get(BY) or SOMEBODY, tags.get(WHY) or f"{projection.STATUS} set to {word} by hand"


def _answered(home: Home, entry: dict[str, Any], word: str, tags: dict[str, str]) -> str:
    """Take a word as the answer to the review that waits for it."""
    author, words = _spoken(word, tags)
    said = f"review of version {entry['challenger']}: {word} by {author}"
    try:
        promotion.settle(home, entry, approved=word == projection.APPROVED, author=author, words=words)
    except StateError as wrong:
        return f"{said}, but {wrong}"
    return said


def _word(home: Home, policy: ReleasePolicy, version: int, word: str, tags: dict[str, str]) -> str:
    """Record a word of a person outside a review; a rejected champion goes."""
    author, words = _spoken(word, tags)
    now = releases.pointer(home)
    approved = word == projection.APPROVED
    kind = ledger.APPROVED if approved else ledger.REJECTED
    body = {"challenger": version, "as_of": _as_of(home, tags, version), "champion_before": now.version, "champion_after": now.version}
    ledger.record(home, kind, None, {**body, "author": author, "words": [words], "reasons": [f"{projection.STATUS} set by hand in MLflow"]})
    said = f"version {version}: {word} by {author}"
    if approved or now.version != version or policy.on_rejected_champion != "rollback":
        return said
    try:
        back = rollback.roll_back(home, reason=f"rejected in MLflow: {words}", author=author)
    except StateError as nothing:
        return f"{said}, but it goes on serving: {nothing}"
    return f"{said}; version {back['champion_after']} serves again"
