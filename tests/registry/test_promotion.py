"""Bundle to decision on a real, small shop: idempotent, killed between steps, racing, damaged."""

from __future__ import annotations

import json
import signal

import promotion_lab
import pytest
from processes import SERVER, ended, process
from trained_shop import FIRST, SECOND

from pipelines import cycle
from pipelines.config import Home
from pipelines.errors import StateError
from pipelines.registry import bundle, evidence, promotion, releases, rollback, tracking


def aliases(home: Home) -> dict[str, str]:
    found = tracking.client(home).get_registered_model(tracking.MODEL).aliases
    return {name: str(version) for name, version in found.items()}


def test_first_model_then_a_week_later(fresh: Home) -> None:
    first = promotion.decide(fresh, FIRST)
    assert first["verdict"] == "promote", first["reasons"]
    assert (first["champion_before"], first["champion_after"], first["track"]) == (None, 1, "first")
    second = promotion.decide(fresh, SECOND)
    assert second["champion_before"] == 1
    assert second["figures"]["champion_age_days"] == 7.0
    assert set(second["figures"]["slices"]) == {"light_users", "cold_users", "tail_items"}
    assert 0 < second["figures"]["slices"]["tail_items"]["n_users"] <= second["figures"]["n_users"]
    (gate,) = cycle.records(fresh, SECOND, "gate")
    assert {"verdict", "champion_before", "champion_after", "reasons", "figures"} <= set(gate)
    assert json.loads(promotion.report_file(fresh, SECOND).read_text()) == {name: gate[name] for name in second}
    assert second["outcome"] in {"promoted", "kept"}
    assert aliases(fresh)["champion"] == str(second["champion_after"])
    tags = tracking.client(fresh).get_model_version(tracking.MODEL, "2").tags
    assert tags["gate.reasons"] == "\n".join(second["reasons"])
    assert tags["gate.verdict"] == second["verdict"]


def test_a_bound_of_fairness_that_the_challenger_breaks_keeps_it_back(fresh: Home) -> None:
    settings = fresh.root / "reloop.toml"
    before = settings.read_text(encoding="utf-8") if settings.is_file() else ""
    settings.write_text(before + "\n[fairness]\nmax_miscalibration = 0.0\n", encoding="utf-8")
    decision = promotion.decide(fresh, FIRST)
    assert decision["verdict"] == "keep"
    assert decision["reasons"][0].startswith("fairness: max_miscalibration")


def test_the_champion_scored_against_itself_does_not_differ(fresh: Home) -> None:
    """The same bundle on both sides: every difference is zero, so nothing hangs on which side a model stands."""
    digest = cycle.records(fresh, FIRST, "bundle")[0]["digest"]
    baseline = releases.Pointer(1, digest, FIRST.isoformat(), None, None, 1)
    found = evidence.weigh(fresh, FIRST, baseline, bundle.load(fresh, digest))
    assert found.champion is not None
    assert (found.challenger == found.champion).all()
    assert all((before == after).all() for before, after in found.slices.values())
    assert len(found.challenger) > 100
    assert found.challenger.mean() == pytest.approx(cycle.records(fresh, FIRST, "ranking")[0]["ndcg_at_10"], abs=1e-9)


def test_deciding_again_repeats_the_decision_and_nothing_else(fresh: Home) -> None:
    once = promotion.decide(fresh, FIRST)
    tracking.client(fresh).delete_registered_model_alias(tracking.MODEL, "champion")
    assert promotion.decide(fresh, FIRST) == once
    assert len(releases.history(fresh)) == 1
    assert releases.pointer(fresh).fence == 1
    assert aliases(fresh)["champion"] == "1"  # a lost alias is put back


def test_a_rerun_after_a_rollback_does_not_promote_again(fresh: Home) -> None:
    promotion.decide(fresh, FIRST)
    now = releases.pointer(fresh)
    digest = cycle.records(fresh, SECOND, "bundle")[0]["digest"]
    body = {
        "as_of": SECOND.isoformat(),
        "champion_before": 1,
        "champion_after": 2,
        "reasons": [],
        "verdict": "promote",
        "track": "superiority",
        "figures": {},
        "challenger": 2,
    }
    releases.flip(fresh, now, version=2, digest=digest, as_of=SECOND.isoformat(), key=f"decide/{SECOND.isoformat()}/{digest}", body=body)
    rollback.roll_back(fresh, reason="clicks fell", author="reviewer-1")
    assert promotion.decide(fresh, SECOND)["verdict"] == "promote"  # what was decided then
    assert releases.pointer(fresh).version == 1
    assert aliases(fresh) == {"champion": "1", "previous_champion": "2", "challenger": "2"}
    assert tracking.client(fresh).get_model_version(tracking.MODEL, "2").tags["rolled_back"] == "to version 1: clicks fell"
    anew = promotion.decide(fresh, SECOND, again="a person asked")  # who wants it judged anew says so
    assert anew["champion_before"] == 1
    assert promotion.decide(fresh, SECOND, again="a person asked") == anew  # a rerun of the same asking
    assert [entry["key"].count("/") for entry in releases.history(fresh) if entry["key"]] == [2, 2, 3]


def test_an_older_challenger_never_replaces_a_newer_champion(fresh: Home) -> None:
    assert promotion.decide(fresh, SECOND)["verdict"] == "promote"
    late = promotion.decide(fresh, FIRST)
    assert late["verdict"] == "keep"
    assert "never goes back in time" in late["reasons"][0]
    assert releases.pointer(fresh).version == 2


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "step",
    [
        pytest.param("ledger.check_anchor", marks=SLOW),
        pytest.param("bundle.load", marks=SLOW),
        pytest.param("evidence.weigh", marks=SLOW),
        pytest.param("bundle.rehearse", marks=SLOW),
        "ledger.append",
        pytest.param("ledger.anchor", marks=SLOW),
        pytest.param("promotion.report_file", marks=SLOW),
        "projection.sync",
        pytest.param("release_database.note", marks=SLOW),
        pytest.param("version_page.write", marks=SLOW),
        pytest.param("runs.log_cycle", marks=SLOW),
    ],
)
def test_killed_before_any_step_a_rerun_ends_as_if_nothing_had_happened(fresh: Home, step: str) -> None:
    module, function = step.split(".")
    codes = ended([process(promotion_lab.killed_before, fresh.root, FIRST, f"pipelines.registry.{module}", function)])
    assert codes == [-signal.SIGKILL]
    assert promotion.decide(fresh, FIRST)["verdict"] == "promote"
    now = releases.pointer(fresh)
    assert (now.version, now.as_of, now.previous_version, now.fence) == (1, FIRST.isoformat(), None, 1)
    assert [entry["kind"] for entry in releases.history(fresh)] == ["promoted"]
    assert releases.verify(fresh) == 1
    assert aliases(fresh)["champion"] == "1"


def test_two_gates_at_once_one_wins_the_other_is_refused_and_judged_again(fresh: Home) -> None:
    """Both read "no champion"; without the fence the later writer would stay on top, whichever is better."""
    both = SERVER.Barrier(2)
    codes = ended([process(promotion_lab.together, fresh.root, moment, both) for moment in (FIRST, SECOND)], patience=300)
    assert sorted(codes) == [0, promotion_lab.STALE]
    assert sorted(entry["kind"] for entry in releases.history(fresh)) == ["promoted", "refused"]
    winner = releases.pointer(fresh).version
    loser = FIRST if winner == 2 else SECOND
    assert promotion.decide(fresh, loser)["champion_before"] == winner
    assert releases.verify(fresh) == 3


def test_a_zombie_and_its_retry_publish_once(fresh: Home) -> None:
    """Promise 9: the orphan hangs between judging and flipping, the retry decides, the orphan goes on: too late."""
    orphan = promotion_lab.zombie(fresh.root, FIRST)
    assert releases.pointer(fresh).version is None
    assert promotion.decide(fresh, FIRST)["outcome"] == "promoted"  # the retry
    assert promotion_lab.woken(orphan) == promotion_lab.STALE
    assert releases.pointer(fresh).fence == 1
    assert [entry["kind"] for entry in releases.history(fresh)] == ["promoted", "refused"]
    assert "stale fence: this was decided already" in releases.history(fresh)[-1]["refusal"]
    assert aliases(fresh)["champion"] == "1"


@pytest.mark.slow
def test_frozen_before_its_flip_and_woken_with_nobody_in_between_it_ends_as_undisturbed(fresh: Home) -> None:
    orphan = promotion_lab.zombie(fresh.root, FIRST)
    assert promotion_lab.woken(orphan) == 0
    assert releases.pointer(fresh).fence == 1
    assert aliases(fresh)["champion"] == "1"
    assert promotion.decide(fresh, FIRST)["outcome"] == "promoted"
    assert [entry["kind"] for entry in releases.history(fresh)] == ["promoted"]


def test_a_damaged_champion_stops_the_gate_and_keeps_serving_nothing_new(fresh: Home) -> None:
    promotion.decide(fresh, FIRST)
    digest = releases.pointer(fresh).digest
    assert digest is not None
    file = fresh.bundles / digest / "model" / "ranker" / "model.txt"
    file.write_bytes(file.read_bytes().replace(b"leaf_value=0", b"leaf_value=9", 1) + b" ")
    with pytest.raises(StateError, match="differ from its manifest"):
        promotion.decide(fresh, SECOND)
    assert releases.pointer(fresh).version == 1


def test_without_a_bundle_there_is_nothing_to_decide(fresh: Home) -> None:
    with pytest.raises(StateError, match="challenger"):
        promotion.decide(fresh, FIRST.replace(year=2024))
