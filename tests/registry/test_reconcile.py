"""What people set by hand in MLflow is honoured or refused, and recorded; what MLflow lost or has not heard yet is told again."""

from __future__ import annotations

from typing import Any

import promotion_lab
import pytest
from processes import SERVER, ended, process
from trained_shop import FIRST, SECOND

from pipelines import cycle, publish
from pipelines.config import Home
from pipelines.decision_policies import ReleasePolicy
from pipelines.errors import StateError
from pipelines.registry import (
    bundle_folder,
    ledger,
    projection,
    promotion,
    reconcile,
    release_database,
    releases,
    rollback,
    signing,
    tracking,
)
from pipelines.window import utc


def digest(home: Home, as_of: Any) -> str:
    return str(cycle.records(home, as_of, "bundle")[0]["digest"])


@pytest.fixture
def served(fresh: Home) -> Home:
    """Return the shop with version 1, then version 2 released, and MLflow told."""
    for version, as_of in ((1, FIRST), (2, SECOND)):
        now = releases.pointer(fresh)
        body = {"as_of": as_of.isoformat(), "champion_before": now.version, "champion_after": version, "reasons": ["as a test has it"]}
        releases.flip(fresh, now, version=version, digest=digest(fresh, as_of), as_of=as_of.isoformat(), key=None, body=body)
    projection.sync(fresh)
    return fresh


def alias(home: Home, to: int | None = None) -> str | None:
    """Return MLflow's alias `champion`; set it by hand first, if told to."""
    books = tracking.client(home)
    if to is not None:
        books.set_registered_model_alias(tracking.MODEL, "champion", str(to))
    found = books.get_registered_model(tracking.MODEL).aliases.get("champion")
    return None if found is None else str(found)


def tagged(home: Home, version: int, **tags: str) -> None:
    for name, value in tags.items():
        tracking.client(home).set_model_version_tag(tracking.MODEL, str(version), name, value)


def test_a_lost_alias_is_told_again_and_a_lagging_one_follows(served: Home) -> None:
    assert alias(served) == "2"
    assert reconcile.reconcile(served) == []
    tracking.client(served).delete_registered_model_alias(tracking.MODEL, "champion")
    assert reconcile.reconcile(served) == ["alias champion was gone: told again"]
    assert alias(served) == "2"
    rollback.roll_back(served, reason="clicks fell")  # with MLflow down
    assert alias(served) == "2"
    assert reconcile.reconcile(served) == []
    assert alias(served) == "1"
    assert [entry["kind"] for entry in releases.history(served)] == ["promoted", "promoted", "rolled back"]
    tags = tracking.client(served).get_model_version(tracking.MODEL, "2").tags
    assert tags["rolled_back"] == "to version 1: clicks fell"


def test_an_alias_that_a_dying_process_set_is_not_taken_for_a_persons(served: Home) -> None:
    """It noted what it was about to tell, told it, and died before it could note that it had."""
    rollback.roll_back(served)
    release_database.note(served, "alias/champion", done="1")
    release_database.note(served, "alias/champion", intended="2")  # of before the rollback
    alias(served, to=2)
    assert reconcile.reconcile(served) == []
    assert (alias(served), releases.pointer(served).version) == ("1", 1)


def test_an_alias_moved_by_hand_is_honoured_in_the_name_that_the_tags_give(served: Home) -> None:
    tagged(served, 1, validation_by="reviewer-1", validation_reason="the old one was better")
    alias(served, to=1)
    assert reconcile.reconcile(served) == ["version 1 serves: reviewer-1 set alias champion"]
    now, last = releases.pointer(served), releases.history(served)[-1]
    assert (now.version, now.digest, now.fence) == (1, digest(served, FIRST), 3)
    assert (last["kind"], last["author"], last["words"]) == ("by hand in MLflow", "reviewer-1", ["the old one was better"])
    assert last["reasons"] == ["set by hand: an earlier release"]
    assert reconcile.reconcile(served) == []
    assert tracking.client(served).get_registered_model(tracking.MODEL).aliases["previous_champion"] in {2, "2"}
    alias(served, to=2)
    reconcile.reconcile(served)
    assert releases.history(served)[-1]["author"] == "somebody in MLflow"
    assert releases.verify(served) == 4


def small(home: Home, version: int) -> str:
    """Publish a bundle that says of when it is, and nothing else."""
    building = home.bundles / "building"
    with publish.folder(building, {}) as out:
        publish.write_json(out / bundle_folder.FACTS_FILE, {"as_of": f"2025-03-{version:02d}T00:00:00+00:00"})
    signing.sign(home, building)
    digest = publish.manifest(building).digest
    building.rename(home.bundles / digest)
    with cycle.stage(home, utc(f"2025-03-{version:02d}"), "bundle") as record:
        record.update(version=version, digest=digest)
    return digest


def test_of_the_tags_that_anybody_may_edit_neither_digest_nor_moment_is_believed(home: Home) -> None:
    one, two = small(home, 1), small(home, 2)
    policy, moment = ReleasePolicy(), "2025-03-02T00:00:00+00:00"
    for edited in ("2099-01-01", "last week", ""):
        assert reconcile._ours(home, policy, {"digest": two, "as_of": edited}, "2") == (two, moment)
        assert reconcile._as_of(home, {"digest": two, "as_of": edited}, 2) == moment
    for digest, wrong in ((one, "the bundle of version 1"), ("e" * 64, "no manifest"), ("../../etc", "sha256"), ("", "no bundle of ours")):
        with pytest.raises(StateError, match=wrong):
            reconcile._ours(home, policy, {"digest": digest, "as_of": moment}, "2")
        assert reconcile._as_of(home, {"digest": digest, "as_of": moment}, 2) is None
    with pytest.raises(StateError, match="the bundle of version 2"):
        reconcile._ours(home, policy, {"digest": two}, "3")
    cycle.forget(home, utc(moment), "bundle")
    with pytest.raises(StateError, match="built as no version"):
        reconcile._ours(home, policy, {"digest": two}, "2")
    ledger.record(home, ledger.KEPT, "decide/2", {"challenger": 2, "challenger_digest": two})
    assert reconcile._ours(home, policy, {"digest": two}, "2") == (two, moment)


@pytest.mark.parametrize(
    "wrong", ["foreign", *(pytest.param(name, marks=pytest.mark.slow) for name in ("damaged", "rejected", "refused here"))]
)
def test_an_alias_that_cannot_be_honoured_is_refused_recorded_and_put_back(served: Home, wrong: str) -> None:
    target, said = 1, {"foreign": "no bundle of ours", "damaged": "differ", "rejected": "validation_status", "refused here": "by_hand"}
    if wrong == "foreign":
        made = tracking.client(served).create_model_version(tracking.MODEL, "file:///nowhere")
        target = int(made.version)
    elif wrong == "damaged":
        file = served.bundles / digest(served, FIRST) / "bundle.json"
        file.write_bytes(file.read_bytes() + b" ")
    elif wrong == "rejected":
        tagged(served, 1, validation_status="rejected")
    else:
        settings = served.root / "reloop.toml"
        settings.write_text(settings.read_text() + '\n[release]\nby_hand = "refuse"\n')
    alias(served, to=target)
    done = reconcile.reconcile(served)
    assert said[wrong] in done[-1]
    assert (alias(served), releases.pointer(served).version) == ("2", 2)
    last = releases.history(served)[-1]
    assert (last["kind"], last["champion_after"], last["challenger"]) == ("refused", 2, target)
    assert said[wrong] in last["refusal"]
    assert reconcile.reconcile(served) == []  # said once


def test_a_champion_that_a_person_rejects_gives_way_and_is_not_promoted_again(served: Home) -> None:
    tagged(served, 2, validation_status="Rejected", validation_by="reviewer-1", validation_reason="shows what is sold out")
    assert reconcile.reconcile(served) == ["version 2: rejected by reviewer-1; version 1 serves again"]
    assert (alias(served), releases.pointer(served).version) == ("1", 1)
    assert [entry["kind"] for entry in releases.history(served)[2:]] == ["rejected", "rolled back"]
    assert reconcile.reconcile(served) == []
    decided = promotion.decide(served, SECOND)
    assert decided["verdict"] == "keep"
    assert decided["reasons"] == ["version 2 was rejected by reviewer-1: shows what is sold out"]


@pytest.mark.slow
def test_an_approval_in_the_tag_answers_the_review_that_waits(fresh: Home) -> None:
    settings = fresh.root / "reloop.toml"
    settings.write_text(settings.read_text() + '\n[release]\nmode = "review"\n')
    assert promotion.decide(fresh, FIRST)["outcome"] == ledger.WAITING
    tagged(fresh, 1, validation_status="approved", validation_by="reviewer-1")
    assert reconcile.reconcile(fresh) == ["review of version 1: approved by reviewer-1"]
    assert releases.pointer(fresh).version == 1
    assert alias(fresh) == "1"
    assert releases.history(fresh)[-1]["author"] == "reviewer-1"
    assert cycle.records(fresh, FIRST, "gate")[0]["outcome"] == "promoted"


def test_over_a_restored_backup_nothing_is_concluded_from_an_alias(served: Home) -> None:
    """The database is of before version 2, MLflow of after: the alias is neither lost nor set by hand."""
    import shutil

    backup = served.root / "backup.db"
    shutil.copy(served.releases, backup)
    rollback.roll_back(served)
    projection.sync(served)
    shutil.copy(backup, served.releases)
    with pytest.raises(StateError, match="older backup was restored"):
        reconcile.reconcile(served)
    assert alias(served) == "1"
    outside = projection.anchored(served)
    assert outside is not None
    with pytest.raises(StateError, match="known to have been written"):
        ledger.verify(served, [outside])


@pytest.mark.slow
def test_whoever_flips_and_tells_at_the_same_time_the_alias_rests_at_the_row(fresh: Home) -> None:
    """Promise 6: nobody repairs anything afterwards; the last to tell reads the pointer once more."""
    books = tracking.client(fresh)
    for number in range(3, 13):
        books.create_model_version(tracking.MODEL, f"file:///nowhere/{number}")
    start = SERVER.Barrier(4)
    tellers = [process(promotion_lab.release_and_tell, fresh.root, [1 + place, 5 + place, 9 + place], start) for place in range(4)]
    assert ended(tellers, patience=300) == [0] * 4
    assert alias(fresh) == str(releases.pointer(fresh).version)
    assert releases.pointer(fresh).fence == 12
    assert reconcile.reconcile(fresh) == []
    assert {entry["kind"] for entry in releases.history(fresh)} <= {"promoted", "refused"}
    assert ledger.verify(fresh, [projection.anchored(fresh)]) == len(releases.history(fresh))
