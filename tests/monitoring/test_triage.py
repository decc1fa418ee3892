"""Evidence and what is done about it: the whole table, and the alert that a person sees."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import timedelta

import pytest
import trained_shop
from trained_shop import FIRST, SECOND

from pipelines.config import Home
from pipelines.decision_policies import TriagePolicy
from pipelines.features import build, parity
from pipelines.monitoring import comparison, evidently_page, faults, quality, triage, triggers
from pipelines.monitoring import drift as drifting
from pipelines.monitoring.churn import Churn
from pipelines.monitoring.comparison import Check, Finding
from pipelines.monitoring.faults import Fault
from pipelines.monitoring.quality import Fall
from pipelines.monitoring.triage import Evidence, judge
from pipelines.registry import promotion
from pipelines.window import Window, utc

POLICY = TriagePolicy()
DAY = utc("2025-03-03")


def fault(*, blocks: bool) -> Fault:
    return Fault(faults.UNIT_CHANGE, DAY.date(), "value", 40, 40, blocks, "column 'value' is 100 times what it was, 40 rows")


def drift(*names: str, verdict: str = comparison.DRIFT) -> Check:
    found = {name: replace(Finding(0.5, 0.2, 900, 900, 0.0, 0.0, 0.1), drifted=True) for name in names}
    return Check(verdict, ("2 of 9 features drifted",), found, {})  # type: ignore[arg-type]


FELL = Fall(before=0.20, now=0.15, difference=-0.05, upper=-0.03, users=900, users_before=900, users_in_both=300)
CHURNED = Churn(DAY, there=100, there_then=100, new=25, gone=25, attention=0.3)
ITEMS, USERS = "item_daily__age_days", "user_daily__events_7d"


@pytest.mark.parametrize(
    ("evidence", "cause", "action"),
    [
        (Evidence(), triage.NOTHING, "nothing"),
        (Evidence(drift=drift(verdict=comparison.NO_DRIFT)), triage.NOTHING, "nothing"),
        (Evidence(faults=(fault(blocks=False),)), triage.NOTHING, "nothing"),
        (Evidence(faults=(fault(blocks=True),)), triage.DATA_FAULT, "block"),
        (Evidence(drift=drift(USERS)), triage.POPULATION_DRIFT, "retrain"),
        (Evidence(fall=FELL), triage.CONCEPT_DRIFT, "retrain first"),
        (Evidence(churn=CHURNED), triage.CATALOGUE_CHURN, "rebuild"),
        # Of several the gravest decides, and all are told.
        (Evidence((fault(blocks=True),), drift(USERS), FELL, CHURNED), triage.DATA_FAULT, "block"),
        (Evidence((), drift(USERS), FELL, CHURNED), triage.CONCEPT_DRIFT, "retrain first"),
        (Evidence((), drift(USERS), None, CHURNED), triage.POPULATION_DRIFT, "retrain"),
        # A replaced catalogue moves what is of items by itself, and the lists: that is no other population.
        (Evidence((), drift(ITEMS, "served__items"), None, CHURNED), triage.CATALOGUE_CHURN, "rebuild"),
        (Evidence((), drift(ITEMS), None, replace(CHURNED, new=5, gone=5)), triage.POPULATION_DRIFT, "retrain"),
        # Missing values and missing columns are faults, however far PSI moved.
        (Evidence(drift=replace(drift(USERS), null_bursts={USERS: "40% of 900 rows have no value"})), triage.DATA_FAULT, "block"),
        (Evidence(drift=replace(drift(), skipped={USERS: "gone: the reference had it"})), triage.DATA_FAULT, "block"),
        (
            Evidence(drift=replace(drift(), skipped={USERS: "of another type: string, the reference holds numbers"})),
            triage.DATA_FAULT,
            "block",
        ),
        (Evidence(drift=replace(drift(), verdict=comparison.NO_DRIFT, skipped={"scores__als": "gone: x"})), triage.NOTHING, "nothing"),
    ],
)
def test_truth_table(evidence: Evidence, cause: str, action: str) -> None:
    found = judge(evidence, POLICY)
    assert (found.cause, found.action) == (cause, action)
    assert found.reasons
    assert all(reason.strip() for reason in found.reasons)
    assert found.blocked == (action == "block")
    assert found.trains == (action not in {"block", "nothing"})


def test_every_cause_that_holds_is_told_and_the_first_decides() -> None:
    found = judge(Evidence((fault(blocks=True), fault(blocks=False)), drift(USERS), FELL, CHURNED), POLICY)
    assert found.causes == (triage.DATA_FAULT, triage.CONCEPT_DRIFT, triage.POPULATION_DRIFT, triage.CATALOGUE_CHURN)
    assert [reason.split(":")[0] for reason in found.reasons] == list(found.causes)
    assert found.alerts == (fault(blocks=False).says,)


@pytest.mark.parametrize(
    "fall",
    [
        replace(FELL, upper=0.001),  # not sure
        replace(FELL, difference=-0.01),  # a tenth of .20 is .02
        replace(FELL, users=199),
        replace(FELL, users_before=199),
        replace(FELL, now=0.21),  # popularity rose, the champion did not fall
        replace(FELL, difference=math.nan, upper=math.nan),
        replace(FELL, before=math.nan),
    ],
)
def test_what_is_not_sure_to_be_a_fall_is_none(fall: Fall) -> None:
    assert judge(Evidence(fall=fall), POLICY).action == "nothing"


def test_an_unmeasured_catalogue_is_no_churn() -> None:
    assert judge(Evidence(churn=Churn(DAY, 0, 0, 0, 0, 0.0)), POLICY).action == "nothing"


def test_a_fault_that_a_person_accepted_blocks_no_more() -> None:
    found = faults.unless_accepted(fault(blocks=True), (f"{faults.UNIT_CHANGE}@2025-03-03",))
    assert not found.blocks
    assert found.says.endswith("(accepted)")
    assert faults.unless_accepted(fault(blocks=True), (f"{faults.UNIT_CHANGE}@2025-03-04", faults.NULL_BURST)).blocks
    burst = Evidence(drift=replace(drift(), verdict=comparison.NO_DRIFT, null_bursts={USERS: "40%"}))
    assert judge(burst, POLICY.model_copy(update={"accept": (faults.NULL_BURST,)})).action == "nothing"


def test_a_fault_of_the_features_is_accepted_by_cause_or_by_cause_and_day() -> None:
    check = replace(drift(), verdict=comparison.NO_DRIFT, null_bursts={USERS: "40%"}, skipped={ITEMS: "gone: the reference had it"})
    burst = Evidence(drift=check, day=DAY.date())

    def accepting(*names: str) -> triage.Triage:
        return judge(burst, POLICY.model_copy(update={"accept": names}))

    both = accepting(f"{faults.NULL_BURST}@2025-03-03", f"{faults.SCHEMA_CHANGE}@2025-03-03")
    assert both.action == "nothing"
    assert both.alerts == ("40% (accepted)", f"column '{ITEMS}' is gone: the reference had it (accepted)")
    assert accepting(faults.NULL_BURST).reasons == (f"data fault: schema change: column '{ITEMS}' is gone: the reference had it",)
    assert accepting(f"{faults.NULL_BURST}@2025-03-04", faults.SCHEMA_CHANGE).blocked


def test_an_alert_keeps_a_part_for_each_who_speaks_and_goes_with_the_last(home: Home) -> None:
    triage.alert(home, DAY, "triage", ["unit change"], blocks=True)
    triage.alert(home, DAY, "trigger", ["3 rejected"], blocks=False)
    kept = json.loads(triage.alert_file(home, DAY).read_text())
    assert kept["blocks"]
    assert {who: part["says"] for who, part in kept["alerts"].items()} == {"triage": ["unit change"], "trigger": ["3 rejected"]}
    triage.alert(home, DAY, "triage", [], blocks=False)
    assert not json.loads(triage.alert_file(home, DAY).read_text())["blocks"]
    triage.alert(home, DAY, "trigger", [], blocks=False)
    assert not triage.alert_file(home, DAY).exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shift", "cause"),
    [("taste_shift", triage.CONCEPT_DRIFT), ("catalogue_churn", triage.CATALOGUE_CHURN), ("traffic_mix", triage.POPULATION_DRIFT)],
)
def test_each_shift_of_the_shop_is_triaged_to_its_cause_within_a_week(fresh: Home, shift: str, cause: str) -> None:
    promotion.decide(fresh, FIRST)
    week_later = SECOND + timedelta(days=7)
    trained_shop.land(fresh, Window(SECOND, week_later), (f"{shift}@{SECOND:%Y-%m-%d}",))
    build.build(fresh, week_later)
    found = triage.check(fresh, week_later)
    assert found.cause == cause, found.reasons
    assert triggers.pending(fresh, week_later)[0].kind == triggers.OF_CAUSE[cause]


def test_what_two_cycles_of_a_day_leave_stands_side_by_side(home: Home) -> None:
    morning, evening = FIRST.replace(hour=6), FIRST.replace(hour=18)
    for moment, says in ((morning, ["broken"]), (evening, [])):
        triage.alert(home, moment, "triage", says, blocks=bool(says))
    assert triage.alert_file(home, morning).is_file(), "a calm evening takes nothing back of the morning"
    for file in (
        drifting.report_file,
        quality.report_file,
        triage.report_file,
        triage.alert_file,
        evidently_page.page_file,
        parity.report_file,
    ):
        assert file(home, morning) != file(home, evening)
        assert file(home, morning).name.startswith("2025-02-10T060000.")
