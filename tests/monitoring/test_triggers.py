"""When a training is due: the whole truth table, and the records it is read from."""

from __future__ import annotations

import itertools
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from small_shop import shop, with_column

from pipelines import cycle, lake
from pipelines.config import Home
from pipelines.decision_policies import FAULTS, DriftPolicy, RetrainPolicy, TriagePolicy
from pipelines.monitoring import comparison, drift, faults, triage, triggers
from pipelines.monitoring.comparison import Check
from pipelines.monitoring.faults import Fault
from pipelines.monitoring.triggers import Request, Situation, judge
from pipelines.registry import ledger, releases
from pipelines.window import DAY, utc

NOW = utc("2025-03-10")
POLICY = RetrainPolicy()  # every 7 days, never within 1


def days_ago(days: float) -> tuple[object, ...]:
    return (NOW - timedelta(days=days),)


@pytest.mark.parametrize(
    ("trained", "requested", "due", "reason"),
    [
        ((), None, True, "nothing was ever trained"),
        (days_ago(7), None, True, "7.0 days ago"),
        (days_ago(6.9), None, False, "nobody asked"),
        (days_ago(3), "PSI of events_7d 0.4", True, "requested: PSI of events_7d 0.4"),
        (days_ago(0.5), "PSI of events_7d 0.4", False, "within the cooldown of 1 days"),
        (days_ago(1), "by hand", True, "requested: by hand"),
        (days_ago(0), "by hand", False, "is done already"),
        (days_ago(-7), None, False, "is the past"),
        ((*days_ago(30), *days_ago(2)), None, False, "2.0 days ago"),
    ],
)
def test_truth_table(trained: tuple, requested: str | None, due: bool, reason: str) -> None:
    found = judge(Situation(NOW, trained, requested), POLICY)
    assert found.due is due
    assert any(reason in said for said in found.reasons), found.reasons


@given(st.lists(st.floats(-40, 40)), st.one_of(st.none(), st.text(min_size=1)))
def test_a_training_never_follows_another_within_the_cooldown_and_every_answer_has_a_reason(
    ages: list[float], requested: str | None
) -> None:
    trained = tuple(NOW - timedelta(days=age) for age in ages)
    found = judge(Situation(NOW, trained, requested), POLICY)
    assert found.reasons
    if found.due:
        assert all(NOW - moment >= timedelta(days=POLICY.cooldown_days) for moment in trained)


def test_a_policy_that_is_no_number_is_refused_and_never_trains() -> None:
    unknown = {"cooldown_days": float("nan"), "cadence_days": float("nan")}
    with pytest.raises(ValidationError, match="finite number"):
        RetrainPolicy(**unknown)
    broken = RetrainPolicy.model_construct(**unknown)  # by a road that checks nothing
    assert not judge(Situation(NOW, days_ago(100), "by hand"), broken).due


def test_a_young_lake_is_not_due_until_it_has_grown(home: Home) -> None:
    """Whoever asks: the walk goes on to the next cycle instead of failing in the first retriever."""
    empty = triggers.decide(home, NOW, "by hand")
    assert not empty.due
    assert "no event before it" in empty.reasons[0]
    lake.land_tables(home, events=shop(28, first=NOW - timedelta(days=27), rows_a_day=2))
    young = triggers.decide(home, NOW)
    assert not young.due
    assert young.reasons[0].startswith("not enough data: ")
    assert "at least 28 days" in young.reasons[0]
    assert cycle.records(home, NOW, "trigger")[0]["reasons"] == list(young.reasons)
    assert triggers.decide(home, NOW + timedelta(days=1)).due


def test_only_trainings_that_ended_in_a_bundle_count(home: Home) -> None:
    lake.land_tables(home, events=shop(28, first=NOW - timedelta(days=28), rows_a_day=2))
    with cycle.stage(home, NOW - timedelta(days=2), "bundle"):
        pass
    with pytest.raises(ZeroDivisionError), cycle.stage(home, NOW - timedelta(days=1), "bundle"):
        raise ZeroDivisionError
    assert triggers.trained(home) == (NOW - timedelta(days=2),)
    assert not triggers.decide(home, NOW).due
    found = triggers.decide(home, NOW, "drift")
    assert found.due
    assert cycle.records(home, NOW, "trigger")[0]["reasons"] == list(found.reasons)


DRIFTED = Request("drift", "2 of 9 features drifted")
FELL = Request("quality", "NDCG fell", priority=True)
CHURNED = Request("catalogue", "a quarter is new")
BROKEN = Fault(faults.UNIT_CHANGE, None, "value", 40, 40, blocks=True, says="column 'value' is 100 times what it was, 40 rows")


def at(*days: float, **known: object) -> Situation:
    return Situation(NOW, tuple(NOW - timedelta(days=day) for day in days), **known)  # type: ignore[arg-type]


def test_several_reasons_make_one_training_with_the_widest_scope_and_the_highest_priority() -> None:
    found = judge(at(8, requested="by hand", requests=(CHURNED, DRIFTED, FELL)), POLICY)
    assert found.due
    assert found.kinds == ("manual", "quality", "catalogue", "drift", "age")
    assert len(found.reasons) == 5
    assert (found.scope, found.priority) == ("all", True)
    assert found.to_json()["figures"]["age_days"] == 8


def test_a_new_catalogue_alone_is_rebuilt() -> None:
    assert judge(at(3, requests=(CHURNED,)), POLICY).scope == "catalogue"
    assert judge(at(3, requests=(CHURNED, DRIFTED)), POLICY).scope == "all"
    assert judge(at(8, requests=(CHURNED,)), POLICY).scope == "all"  # a whole training is due anyway


def test_priority_shortens_the_cooldown_and_nothing_else() -> None:
    assert not judge(at(0.5, requests=(DRIFTED,)), POLICY).due
    assert judge(at(0.5, requests=(FELL,)), POLICY).due
    assert not judge(at(0.2, requests=(FELL,)), POLICY).due
    assert not judge(at(0.5, 1, 2, requests=(FELL,)), POLICY).due  # the week's budget


def test_a_cause_that_a_training_answered_is_answered_again_only_after_some_days() -> None:
    """The sources of a training are judged on its last week, so none within a week of the shift has learnt from it."""

    def asked(days: float, *requests: Request, kind: str = "catalogue") -> triggers.Trigger:
        return judge(at(days, requests=requests, answered={kind: NOW - timedelta(days=days)}), POLICY)  # type: ignore[dict-item]

    assert not asked(2, CHURNED).due
    assert (
        asked(2, CHURNED).reasons[0]
        == "answered by the training for 2025-03-08, and again 7 days after it if it is still so: a quarter is new"
    )
    assert asked(2, CHURNED, FELL).due, "another cause is another matter"
    assert asked(2, CHURNED, FELL).kinds == ("quality",)
    assert asked(7, CHURNED).due
    assert not asked(3, FELL, kind="quality").due


def test_which_causes_were_answered_is_read_from_the_records(home: Home) -> None:
    for day, kinds, due, trained in ((1, ["drift", "manual"], True, True), (3, ["catalogue"], True, False), (4, ["quality"], False, True)):
        moment = NOW - timedelta(days=day)
        with cycle.stage(home, moment, "trigger") as record:
            record |= {"due": due, "kinds": kinds}
        if trained:
            with cycle.stage(home, moment, "bundle") as record:
                record |= {"digest": "d"}
    assert triggers.answered(home, NOW) == dict.fromkeys(["drift", "catalogue"], NOW - timedelta(days=1))
    assert triggers.answered(home, NOW - timedelta(days=1)) == {}


def test_a_whole_training_answers_other_people_and_new_items_whichever_asked_for_it(home: Home) -> None:
    """It made sources, index and ranker again; one of the catalogue alone kept the ranker, and a champion that falls is its own matter."""

    def trained(day: int, kinds: list[str], scope: str) -> None:
        moment = NOW - timedelta(days=day)
        with cycle.stage(home, moment, "trigger") as record:
            record |= {"due": True, "kinds": kinds, "scope": scope}
        with cycle.stage(home, moment, "bundle"):
            pass

    trained(9, ["catalogue"], "catalogue")
    assert triggers.answered(home, NOW) == {"catalogue": NOW - timedelta(days=9)}
    trained(6, ["age"], "all")
    assert triggers.answered(home, NOW) == {"catalogue": NOW - timedelta(days=9)}, "no cause of the data asked for it"
    trained(3, ["quality"], "all")
    assert triggers.answered(home, NOW) == dict.fromkeys(["quality", "drift", "catalogue"], NOW - timedelta(days=3))
    trained(1, ["drift"], "all")
    assert triggers.answered(home, NOW) == {"quality": NOW - timedelta(days=3)} | dict.fromkeys(["drift", "catalogue"], NOW - DAY)


@pytest.mark.parametrize(
    ("failed", "ago", "due"), [(1, 1.9, False), (1, 2, True), (2, 3.9, False), (2, 4, True), (9, 6.9, False), (9, 7, True)]
)
def test_a_training_that_came_to_nothing_is_tried_again_after_a_pause_that_doubles(failed: int, ago: float, due: bool) -> None:
    """Also the first of all, which else waits for nothing; a person who asks waits for none of it."""
    tried = tuple(NOW - timedelta(days=ago + day) for day in range(failed))
    for known in (at(failed=tried), at(30, failed=tried), at(30, failed=tried, requests=(DRIFTED,))):
        found = judge(known, POLICY)
        assert found.due is due, found.reasons
        if not due:
            assert "came to no bundle" in found.reasons[0]
        assert bool(found.alerts) is (failed >= POLICY.alert_after_rejections)
    assert judge(at(30, failed=tried, requested="mended"), POLICY).due


def test_a_training_that_is_broken_is_not_begun_with_every_batch_of_features(home: Home) -> None:
    """Eight batches in two days; the second is due while nothing is known of the first, the day's own rerun always is."""
    lake.land_tables(home, events=shop(35, first=NOW - timedelta(days=33), rows_a_day=2))
    begun = [hours for hours in range(0, 48, 6) if triggers.decide(home, NOW + timedelta(hours=hours)).due]
    assert begun == [0]
    assert triggers.decide(home, NOW).due, "the same moment again is the same training"
    assert triggers.failed(home, NOW + 2 * DAY) == (NOW,)
    assert triggers.decide(home, NOW + timedelta(hours=7), "mended").due
    with cycle.stage(home, NOW + timedelta(hours=7), "bundle"):
        pass
    assert triggers.failed(home, NOW + 2 * DAY) == ()


def test_nothing_is_trained_on_faulty_data_whoever_asks() -> None:
    for situation in (at(), at(30), at(3, requested="by hand", requests=(FELL,))):
        found = judge(Situation(situation.as_of, situation.trained, situation.requested, situation.requests, (BROKEN,)), POLICY)
        assert not found.due
        assert found.reasons[0] == f"data fault, nothing is trained on it: {BROKEN.says}"
        assert found.alerts == (BROKEN.says,)
    told = Fault(faults.DUPLICATES, None, "event_id", 5, 100, blocks=False, says="5 rows came twice")
    assert judge(at(8, faults=(told,)), POLICY).due


@pytest.mark.parametrize(("events", "due"), [(299, False), (300, True), (None, False)])
def test_three_times_the_usual_volume_is_due_early(events: int | None, due: bool) -> None:
    found = judge(at(3, events=events, usual_events=100.0), POLICY)
    assert found.due is due
    assert ("volume" in found.kinds) is due


def test_the_budget_counts_the_last_seven_days_alone() -> None:
    assert not judge(at(2, 4, 6.9, requests=(DRIFTED,)), POLICY).due
    assert judge(at(2, 4, 7.1, requests=(DRIFTED,)), POLICY).due


def stormed(policy: RetrainPolicy, days: int = 30, gate: bool = False) -> tuple[list[int], list[tuple[str, ...]]]:
    """Return on which days a world that drifts every day, and a champion that falls, are trained for; `gate` promotes each challenger."""
    trained: list[object] = []
    alerts, rejected = [], 0
    for day in range(days):
        now = NOW + timedelta(days=day)
        found = judge(Situation(now, tuple(trained), requests=(DRIFTED,), rejected=rejected), policy)  # type: ignore[arg-type]
        alerts.append(found.alerts)
        if found.due:
            trained.append(now)
            rejected = 0 if gate else rejected + 1
    return [(moment - NOW).days for moment in trained], alerts  # type: ignore[operator]


def test_thirty_days_of_drift_make_no_storm_of_trainings() -> None:
    """Promise 19: the first at once, then 2, 4 and 7 days apart, for every challenger fails; a person is told after three."""
    days, alerts = stormed(POLICY)
    assert days == [0, 2, 6, 13, 20, 27]
    assert not any(alerts[: days[3]][: days[2] + 1])
    assert all("challengers in a row failed the gate" in alerts[day][0] for day in range(days[2] + 1, 30))


def test_challengers_that_are_promoted_are_trained_once_a_cooldown_within_the_budget() -> None:
    days, alerts = stormed(POLICY, gate=True)
    assert all(b - a >= POLICY.cooldown_days for a, b in itertools.pairwise(days))
    assert max(sum(first <= day < first + 7 for day in days) for first in days) <= POLICY.budget_per_week
    assert not any(alerts)


@pytest.mark.parametrize("broken", ["cooldown_days", "budget_per_week", "alert_after_rejections"])
def test_breaking_a_brake_is_noticed(broken: str) -> None:
    """Who tests the tests: without back-off, budget or alert the storm looks otherwise."""
    loose = {"cooldown_days": {"cooldown_days": 0.0, "max_backoff_days": 0.0}, "budget_per_week": {"budget_per_week": 99}}
    policy = POLICY.model_copy(update=loose.get(broken, {"alert_after_rejections": 99}))
    sound, found = stormed(POLICY, gate=broken == "budget_per_week"), stormed(policy, gate=broken == "budget_per_week")
    assert found != sound


@given(st.lists(st.floats(0, 40), max_size=8), st.integers(0, 9), st.booleans(), st.booleans())
def test_whatever_asks_the_brakes_hold(ages: list[float], failed: int, falls: bool, faulty: bool) -> None:
    asked = (FELL,) if falls else (DRIFTED,)
    found = judge(at(*ages, requests=asked, rejected=failed, faults=(BROKEN,) if faulty else ()), POLICY)
    assert found.reasons
    if found.due and ages:
        assert not faulty
        assert min(ages) >= triggers.cooldown_days(POLICY, failed, priority=falls)
        assert sum(age < 7 for age in ages) < POLICY.budget_per_week


def _triaged(home: Home, as_of: object, cause: str) -> None:
    with cycle.stage(home, as_of, "triage") as record:  # type: ignore[arg-type]
        record.update(triage.Triage(cause, (cause,), (f"{cause}: because",)).to_json(), champion=1)


def test_a_request_waits_for_the_cooldown_and_is_dropped_where_a_later_triage_takes_it_back(home: Home) -> None:
    releases.flip(home, releases.pointer(home), version=1, digest="0" * 64, as_of=NOW.isoformat(), key=None, body={})
    with cycle.stage(home, NOW, "bundle"):
        pass
    assert triggers.pending(home, NOW) == ()
    _triaged(home, NOW, triage.CONCEPT_DRIFT)
    later = NOW + timedelta(days=1)
    assert triggers.pending(home, later) == (Request("quality", "concept drift: because", priority=True),)
    assert triggers.pending(home, NOW - timedelta(days=1)) == ()
    with cycle.stage(home, later, "bundle"):  # a training answered it
        pass
    assert triggers.pending(home, later) == ()
    _triaged(home, later, triage.POPULATION_DRIFT)
    assert [request.kind for request in triggers.pending(home, later)] == ["drift"]
    _triaged(home, later, triage.NOTHING)
    assert triggers.pending(home, later) == ()


def test_rejections_in_a_row_are_counted_from_the_ledger(home: Home) -> None:
    def kept(day: int, challenger: int, champion: int | None) -> None:
        moment = NOW + timedelta(days=day)
        body = {"as_of": moment.isoformat(), "challenger": challenger, "champion_before": champion, "verdict": "keep"}
        releases.keep(home, f"decide/{day}", body)

    later = NOW + timedelta(days=30)
    kept(0, 1, None)  # nothing serves: no champion was defended
    assert triggers.rejected(home, later) == 0
    releases.flip(home, releases.pointer(home), version=1, digest="0" * 64, as_of=NOW.isoformat(), key="a", body={})
    kept(1, 2, 1)
    kept(2, 3, 1)
    kept(3, 1, 1)  # the champion itself, put forward again
    assert triggers.rejected(home, later) == 2
    assert triggers.rejected(home, NOW + timedelta(days=2)) == 1
    releases.flip(home, releases.pointer(home), version=4, digest="1" * 64, as_of=NOW.isoformat(), key="b", body={})
    assert triggers.rejected(home, later) == 0


def test_only_what_the_gate_found_wanting_counts_as_rejected(home: Home) -> None:
    releases.flip(home, releases.pointer(home), version=1, digest="0" * 64, as_of=NOW.isoformat(), key="a", body={})
    body = {"as_of": NOW.isoformat(), "champion_before": 1}
    ledger.record(home, ledger.WAITING, "decide/2", {**body, "challenger": 2, "verdict": "promote"})
    ledger.record(home, ledger.APPROVED, None, {**body, "challenger": 5, "author": "x"})
    releases.keep(home, "decide/3", {**body, "challenger": 3, "verdict": "promote", "outcome": "releases are off"})
    releases.keep(home, "decide/4", {**body, "challenger": 4, "verdict": "not enough evidence"})
    assert triggers.rejected(home, NOW + timedelta(days=1)) == 0


def test_a_stray_folder_between_the_cycles_is_passed_over(home: Home) -> None:
    releases.flip(home, releases.pointer(home), version=1, digest="0" * 64, as_of=NOW.isoformat(), key="a", body={})
    for name in ("triage.json", "bundle.json"):
        (stray := home.reports / "cycles" / ".DS_Store").mkdir(parents=True, exist_ok=True)
        (stray / name).write_text("{}")
    assert triggers.pending(home, NOW) == ()
    assert triggers.trained(home) == ()


@pytest.mark.parametrize(
    ("policy", "settings", "said"),
    [
        (DriftPolicy, {"persistent": 7, "windows": 2}, "above drift.windows 2"),
        (DriftPolicy, {"psi_moved": 0.5}, "above drift.psi_threshold 0.2"),
        (TriagePolicy, {"quality_users": 100, "min_quality_users": 200}, "above triage.quality_users 100"),
        (TriagePolicy, {"accept": ("volum drop",)}, "'volum drop', which is none of"),
        (TriagePolicy, {"accept": ("volume drop@soon",)}, "whose day is not YYYY-MM-DD"),
        (RetrainPolicy, {"priority_cooldown_days": 2.0}, "above retrain.cooldown_days 1"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(policy: type, settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        policy(**settings)


def test_every_fault_can_be_accepted() -> None:
    assert set(FAULTS) == {cause for _, cause in faults.WORDS} | {faults.UPSTREAM_GAP, faults.BOT_BURST, faults.REFUSED}
    assert TriagePolicy(accept=(*FAULTS, "volume drop@2025-12-25")).accept


def test_a_fault_of_the_features_stops_the_training_whichever_dag_is_first(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """A feature is gone since the champion learnt: `due` says so before the monitor has run, after it, and no more once it is accepted."""
    lake.land_tables(home, events=shop(35, first=NOW - timedelta(days=35)))
    learnt = NOW - timedelta(days=8)
    releases.flip(home, releases.pointer(home), version=1, digest="0" * 64, as_of=learnt.isoformat(), key=None, body={})
    skipped = {"user_daily__a": "gone: the reference had it, the day has not"}
    monkeypatch.setattr(drift, "features", lambda *_: Check(comparison.NO_DRIFT, ("calm",), {}, skipped))
    said = f"column 'user_daily__a' is {skipped['user_daily__a']}"
    first = triggers.decide(home, NOW, "by hand")
    assert not first.due
    assert first.reasons[0] == f"data fault, nothing is trained on it: {said}"
    assert first.alerts == (said,)
    _triaged(home, NOW, triage.DATA_FAULT)
    assert not triggers.decide(home, NOW).due
    (home.root / "reloop.toml").write_text(f'[triage]\naccept = ["schema change@{NOW:%Y-%m-%d}"]\n')
    assert triggers.decide(home, NOW).due


def test_broken_data_stops_the_training_on_record_with_an_alert(home: Home) -> None:
    """Four good weeks and one at a hundred times the price; the trigger says so, whoever asks."""
    sold = shop(35, first=NOW - timedelta(days=35))
    value = [price and price * (100 if row >= 28 * 200 else 1) for row, price in enumerate(sold["value"].to_pylist())]
    lake.land_tables(home, events=with_column(sold, "value", value))
    found = triggers.decide(home, NOW, "by hand")
    assert not found.due
    assert "column 'value' is 100 times what the same 23 items cost before, 40 rows" in found.reasons[0]
    assert cycle.records(home, NOW, "trigger")[0]["alerts"]
    assert triage.alert_file(home, NOW).is_file()
    (home.root / "reloop.toml").write_text('[triage]\naccept = ["unit change"]\n')
    assert triggers.decide(home, NOW, "by hand").due
