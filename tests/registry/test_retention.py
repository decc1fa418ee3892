"""Old bundles are taken away; what serves, served last, waits for a word or could be gone back to never is."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import ended, process
from trained_shop import FIRST, SECOND

from pipelines import cycle, publish
from pipelines.config import Home
from pipelines.decision_policies import RetentionPolicy
from pipelines.errors import StaleFence, StateError
from pipelines.registry import bundle_folder, ledger, releases, retention, rollback, signing, tracking


def bundle(home: Home, version: int) -> str:
    """Publish a small bundle that says of when it is."""
    building = home.bundles / "building"
    with publish.folder(building, {}) as out:
        publish.write_json(out / bundle_folder.FACTS_FILE, {"as_of": f"2025-03-{version:02d}T00:00:00+00:00"})
    signing.sign(home, building)
    digest = publish.manifest(building).digest
    building.rename(home.bundles / digest)
    os.utime(home.bundles / digest, ns=(version * 10**9, version * 10**9))
    return digest


def release(home: Home, version: int, digest: str, kind: str = ledger.PROMOTED) -> None:
    now = releases.pointer(home)
    body = {
        "as_of": f"2025-03-{version:02d}T00:00:00+00:00",
        "challenger": version,
        "challenger_digest": digest,
        "champion_before": now.version,
        "champion_after": version,
        "reasons": [],
    }
    releases.flip(home, now, version=version, digest=digest, as_of=body["as_of"], key=f"decide/{version}", body=body, kind=kind)


def settle(home: Home, keep_last: int, keep_runs: int = 1) -> None:
    home.root.mkdir(parents=True, exist_ok=True)
    (home.root / "reloop.toml").write_text(f"[retention]\nkeep_last = {keep_last}\nkeep_runs = {keep_runs}\n")


@pytest.fixture(autouse=True)
def no_mlflow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave MLflow out where a test is not about it: making its database takes longer than all the rest."""
    if "trained" not in request.fixturenames:
        monkeypatch.setattr(retention, "_mark", lambda _: 0)
        monkeypatch.setattr("pipelines.registry.lineage.versions", _versions)


def _versions(home: Home) -> dict[int, str]:
    return {int(entry["version"]): str(entry["digest"]) for entry in ledger.history(home) if entry.get("digest")}


def test_what_is_kept_is_worked_out_on_paper() -> None:
    """Ten bundles. 9 serves, 8 served before; 7 was rolled back from; 3 waits for a person; 10 waits for the gate; 4 lost. Two of each kind stay."""
    names = {number: f"{number:x}" * 64 for number in range(1, 11)}
    built = [retention.Bundle(names[n], n, f"2025-03-{n:02d}", n, decided=n != 10) for n in names]

    def entry(kind: str, version: int, **more: Any) -> dict[str, Any]:
        return {"kind": kind, "version": version, "digest": names[version], "key": f"decide/{version}", **more}

    history: list[dict[str, Any]] = [
        *(entry(ledger.PROMOTED, n) for n in (1, 2, 5, 6, 7)),
        entry(ledger.ROLLED_BACK, 6, champion_before=7),
        entry(ledger.WAITING, 3, challenger_digest=names[3]),
        {"kind": ledger.KEPT, "challenger_digest": names[4], "key": "decide/4"},
        *(entry(ledger.PROMOTED, n) for n in (8, 9)),
    ]
    pointer = releases.Pointer(9, names[9], "2025-03-09", 8, names[8], 9)
    found = retention.kept(built, pointer, history, RetentionPolicy(keep_last=2), {})
    assert {int(digest[0], 16) if digest[0] != "a" else 10: reason for digest, reason in ((d, r) for d, r in found.items())} == {
        9: "champion",
        8: "previous champion",
        3: "waits for a person's word",
        6: "one of the 2 releases to go back to",
        10: "one of the 2 newest bundles",
    }
    answered = [*history, {"kind": ledger.REJECTED, "answers": "decide/3", "key": "answer/3"}]
    assert names[3] not in retention.kept(built, pointer, answered, RetentionPolicy(keep_last=2), {})
    least = retention.kept(built, pointer, answered, RetentionPolicy(keep_last=0), {})
    assert set(least) == {names[9], names[8], names[10]}, (
        "the champion, the one before and what the gate has not seen stay whatever is said"
    )


TRIED = "[x]\n[x.arms.control]\n[x.arms.old]\nversion = 2\n"


def test_what_an_experiment_answers_from_stays_as_long_as_it_is_declared(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(home, keep_last=0)
    made = {version: bundle(home, version) for version in range(1, 6)}
    for version, digest in made.items():
        release(home, version, digest)
    home.experiments.write_text(TRIED[:-5])
    assert retention.collect(home)["collected"] == [], "what cannot be read may name any of them"
    home.experiments.write_text(TRIED)
    found = retention.collect(home, dry_run=True)
    assert found["kept"][made[2]] == "experiment x answers from it"
    real = retention.kept

    def planned(*arguments: Any) -> dict[str, str]:
        plan = real(*arguments)
        home.experiments.write_text(TRIED + "[x.arms.older]\nversion = 1\n")  # declared between the plan and the taking
        return plan

    monkeypatch.setattr(retention, "kept", planned)
    assert [one["version"] for one in retention.collect(home)["collected"]] == [3]
    bundle_folder.checked(home, made[2])
    home.experiments.unlink()
    monkeypatch.setattr(retention, "kept", real)
    assert [one["version"] for one in retention.collect(home)["collected"]] == [1, 2]


def test_the_rest_is_taken_and_going_back_to_it_says_so(home: Home) -> None:
    settle(home, keep_last=1)
    made = {version: bundle(home, version) for version in range(1, 6)}
    for version, digest in made.items():
        release(home, version, digest)
    would = retention.collect(home, dry_run=True)
    assert [one["version"] for one in would["collected"]] == [1, 2, 3]
    assert all((home.bundles / digest).is_dir() for digest in made.values())
    found = retention.collect(home)
    assert [one["version"] for one in found["collected"]] == [1, 2, 3]
    assert found["bytes"] == would["bytes"] > 0
    assert {path.name for path in home.bundles.glob("?" * 64)} == {made[4], made[5]}
    with pytest.raises(StateError, match=r"collected by retention \(version 2, as of 2025-03-02\).*reloop train --as-of 2025-03-02"):
        rollback.roll_back(home, 2)
    with pytest.raises(StateError, match="collected by retention"):
        bundle_folder.checked(home, made[1])
    with pytest.raises(StateError, match="collected by retention"):
        release(home, 6, made[3])
    assert rollback.roll_back(home)["champion_after"] == 4
    assert retention.collect(home)["collected"] == []
    assert releases.verify(home) == 6


def test_a_collection_reads_the_pointer_again_before_it_takes_a_bundle(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody goes back to a release between the plan and the taking: it stays."""
    settle(home, keep_last=0)
    made = {version: bundle(home, version) for version in range(1, 5)}
    for version, digest in made.items():
        release(home, version, digest)
    real = retention.kept

    def planned(*arguments: Any) -> dict[str, str]:
        found = real(*arguments)
        rollback.roll_back(home, 1)
        return found

    monkeypatch.setattr(retention, "kept", planned)
    found = retention.collect(home)
    assert [one["version"] for one in found["collected"]] == [2]
    assert releases.pointer(home).digest == made[1]
    bundle_folder.checked(home, made[1])


def _flips(root: Path, seed: int) -> None:
    home, rng = Home(root), random.Random(seed)
    for _ in range(25):
        try:
            rollback.roll_back(home, rng.choice(range(1, 9)))
        except (StateError, StaleFence):
            continue
    os._exit(0)


def _collects(root: Path) -> None:
    home = Home(root)
    for keep_last in (3, 2, 1, 0, 0, 0):
        settle(home, keep_last)
        retention.collect(home)
    os._exit(0)


def test_collections_and_flips_at_once_never_leave_a_pointer_without_its_bundle(home: Home) -> None:
    for version in range(1, 9):
        release(home, version, bundle(home, version))
    assert ended([*(process(_flips, home.root, seed) for seed in range(2)), process(_collects, home.root)]) == [0, 0, 0]
    now = releases.pointer(home)
    for digest in (now.digest, now.previous_digest):
        assert digest is not None
        bundle_folder.checked(home, digest)
    reigns = [entry for entry in releases.history(home) if entry["kind"] == ledger.ROLLED_BACK]
    assert reigns, "somebody did go back meanwhile"
    assert len(list((home.bundles / bundle_folder.COLLECTED).glob("*.json"))) >= 3


def _killed(root: Path, before: int, action: Callable[[Home], Any]) -> None:
    import sys

    seen = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in {"os.rename", "os.remove", "os.rmdir", "shutil.rmtree"} and str(arguments[0]).startswith(str(root)):
            seen += 1
            if seen > before:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    action(Home(root))
    os._exit(0)


def test_a_collection_killed_anywhere_is_finished_by_the_next(home: Home, tmp_path: Path) -> None:
    settle(home, keep_last=0)
    made = {version: bundle(home, version) for version in range(1, 5)}
    for version, digest in made.items():
        release(home, version, digest)
    ends = []
    for before in range(40):
        root = tmp_path / f"kill-{before}"
        shutil.copytree(home.root, root)
        ends += ended([process(_killed, root, before, retention.collect)])
        cut = Home(root)
        for digest in (made[3], made[4]):
            bundle_folder.checked(cut, digest)
        retention.collect(cut)
        names = {path.name for path in cut.bundles.iterdir()}
        assert {name for name in names if len(name) == 64} == {made[3], made[4]}
        assert not [name for name in names if name.startswith(".") and name != ".lock"], "nothing hidden is left"
        for version in (1, 2):
            with pytest.raises(StateError, match=f"collected by retention .version {version}"):
                bundle_folder.checked(cut, made[version])
        if ends[-1] == 0:
            break
    assert ends[-1] == 0
    assert ends[:-1] == [-signal.SIGKILL] * (len(ends) - 1)
    assert len(ends) > 6


def test_mlflow_is_told_and_its_copy_goes_while_the_version_stays(trained: Home, fresh: Home, tmp_path: Path) -> None:
    digests = [cycle.records(fresh, moment, "bundle")[0]["digest"] for moment in (FIRST, SECOND)]
    os.utime(fresh.bundles / digests[0], ns=(0, 0))
    release(fresh, 2, digests[1])
    (fresh.root / "reloop.toml").write_text("[retention]\nkeep_last = 1\nkeep_runs = 1\n")
    found = retention.collect(fresh)
    assert [one["version"] for one in found["collected"]] == [1]
    assert found["runs"] == [], "the gate has not spoken on the first"
    tags = tracking.client(fresh).get_model_version(tracking.MODEL, "1").tags
    assert tags["digest"] == digests[0]
    assert "train again" in tags[retention.TAG]
    assert retention.TAG not in tracking.client(fresh).get_model_version(tracking.MODEL, "2").tags
    copies = list(trained.mlflow.glob("artifacts/**/bundle.json"))
    assert len(copies) >= 2, "a copy outside of the state folder is not ours to delete"


def test_mlflow_s_copy_is_deleted_in_the_state_folder_and_nowhere_else(home: Home, tmp_path: Path) -> None:
    inside, outside = home.mlflow / "artifacts" / "m-1", tmp_path / "store" / "m-2"
    for folder in (inside, outside):
        (folder / "artifacts").mkdir(parents=True)
        (folder / "artifacts" / "model.txt").write_text("trees")
        retention._delete_copy(home, folder.as_uri())
    retention._delete_copy(home, "mlflow-artifacts:/1/models/m-3")
    retention._delete_copy(home, (home.mlflow / ".." / ".." / "store" / "m-2").as_posix())
    assert not inside.exists()
    assert (outside / "artifacts" / "model.txt").is_file()


def test_training_runs_beyond_the_newest_go_once_the_gate_has_spoken(home: Home) -> None:
    settle(home, keep_last=1, keep_runs=1)
    for version in (1, 2, 3):
        release(home, version, bundle(home, version))
        moment = retention.utc(f"2025-03-{version:02d}")
        (home.training / f"{moment:%Y-%m-%dT%H%M%S}" / "universe").mkdir(parents=True)
        with cycle.stage(home, moment, "bundle"):
            pass
    (home.training / "2025-02-01T000000").mkdir()  # never finished: somebody may be at it
    assert retention.collect(home, dry_run=True)["runs"] == ["2025-03-01T000000", "2025-03-02T000000"]
    assert retention.collect(home)["runs"] == ["2025-03-01T000000", "2025-03-02T000000"]
    assert sorted(path.name for path in home.training.iterdir()) == ["2025-02-01T000000", "2025-03-03T000000"]


def test_a_bundle_that_is_built_again_is_collected_no_more(home: Home) -> None:
    digest = bundle(home, 1)
    grave = bundle_folder.tombstone(home, digest)
    shutil.move(home.bundles / digest, home.bundles / ".aside")
    publish.write_json(grave, {"digest": digest, "version": 1, "as_of": "2025-03-01"})
    with pytest.raises(StateError, match="collected"):
        bundle_folder.checked(home, digest)
    from pipelines.registry import assembling

    shutil.move(home.bundles / ".aside", home.bundles / "building")
    assert assembling._settle(home, home.bundles / "building").name == digest
    assert not grave.exists()
    bundle_folder.checked(home, digest)
    assert json.loads((home.bundles / digest / bundle_folder.FACTS_FILE).read_text())["as_of"].startswith("2025-03-01")


def test_a_removal_of_a_training_run_that_was_killed_is_finished_by_the_next(home: Home, tmp_path: Path) -> None:
    """Whatever is hidden there, or is no cycle's, must not stop the collections of all days to come."""
    settle(home, keep_last=1, keep_runs=1)
    for version in (1, 2):
        release(home, version, bundle(home, version))
        moment = retention.utc(f"2025-03-{version:02d}")
        (home.training / f"{moment:%Y-%m-%dT%H%M%S}" / "universe").mkdir(parents=True)
        with cycle.stage(home, moment, "bundle"):
            pass
    (home.training / "2025-of-the-Tests").mkdir()
    ends = []
    for before in range(40):
        root = tmp_path / f"kill-{before}"
        shutil.copytree(home.root, root)
        ends += ended([process(_killed, root, before, retention.collect)])
        cut = Home(root)
        retention.collect(cut)
        assert sorted(path.name for path in cut.training.iterdir()) == ["2025-03-02T000000", "2025-of-the-Tests"]
        if ends[-1] == 0:
            break
    assert ends == [-signal.SIGKILL] * (len(ends) - 1) + [0]
    assert len(ends) > 4


def test_a_deletion_of_mlflow_s_copy_that_was_killed_is_finished_by_the_next(home: Home) -> None:
    copy = home.mlflow / "artifacts" / "m-1"
    copy.mkdir(parents=True)
    copy.rename(copy.with_name(f"{retention.DOOMED}m-1"))  # killed here
    retention._delete_copy(home, copy.as_uri())
    assert list(copy.parent.iterdir()) == []


def test_a_bundle_that_was_announced_as_taken_and_was_not_can_be_gone_back_to(home: Home) -> None:
    """Killed between tombstone and renaming; by the next collection an operator keeps more."""
    settle(home, keep_last=5)
    made = {version: bundle(home, version) for version in (1, 2, 3, 4)}
    for version, digest in made.items():
        release(home, version, digest)
    publish.write_json(bundle_folder.tombstone(home, made[1]), {"digest": made[1], "version": 1, "as_of": "2025-03-01"})
    publish.write_json(bundle_folder.tombstone(home, "0" * 64), {"digest": "0" * 64, "version": 9, "as_of": "2025-03-01"})
    retention.collect(home, dry_run=True)
    assert bundle_folder.tombstone(home, made[1]).is_file(), "a dry run changes nothing"
    assert made[1] in retention.collect(home)["kept"]
    assert rollback.roll_back(home, 1)["champion_after"] == 1
    assert bundle_folder.tombstone(home, "0" * 64).is_file(), "what was taken stays so"
