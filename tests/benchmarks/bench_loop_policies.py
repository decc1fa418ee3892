"""Does the loop do the right thing? The simulated shop for 60 quiet days, under each named shift, and under each named fault.

Three questions: how often it is alarmed without a cause; whether a shift or a fault is found, in how many days, and answered by the
right action; and what that is worth by the simulator's truth, against never training again and against training weekly, daily or
evenly spread with the same number of trainings. Every part is kept under --home as it ends, so a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from loop_world import Life, begun, champions, day, forked, loop
from one_run import machine, write_page

from pipelines.decision_policies import RetrainPolicy
from pipelines.sources.simulator.incidents import Fault, Shift

FIRST = 42  # the first model
ONSET = 56  # of a shift, or of a fault for one day
AFTER = 24  # days lived after a shift
QUIET = 60  # days without anything
BUDGET = 4  # trainings after the first
EVERY = 5  # days between two measurements of worth
LOOP = RetrainPolicy(cadence_days=28.0)  # what the loop does by the calendar alone is one training
RIGHT = {
    Shift.TASTE_SHIFT: {"retrain", "retrain first"},
    Shift.CATALOGUE_CHURN: {"rebuild"},
    Shift.TRAFFIC_MIX: {"retrain", "retrain first"},
    Fault.SCHEMA_CHANGE: {"block"},
    Fault.NULLS: {"block"},
    Fault.PRICE_IN_CENTS: {"block"},
    Fault.BOT_BURST: {"block"},
    Fault.VOLUME_DROP: {"block"},
    Fault.DUPLICATES: {"nothing"},  # taken out as they land
    Fault.LATE: {"nothing"},  # they land in their day
    Fault.OUT_OF_ORDER: {"nothing"},
    Fault.ENUM_ADD: {"block"},  # 4% of the rows are unknown: more than quarantine may swallow
    Fault.FUTURE_CLOCK: {"nothing"},  # 2% likewise
}
ACTIONS = ("block", "retrain first", "retrain", "rebuild", "nothing")


def tell(text: str) -> None:
    print(f"  {time.strftime('%H:%M:%S')} {text}", flush=True)


def kept(file: Path, make: Any) -> Any:
    """Return what a file holds, made and written if there is none."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(make(), indent=1))
    return json.loads(file.read_text())


def worths(life: Life, trained: dict[str, list[int]], days: list[int]) -> dict[str, float]:
    """Return the mean worth of each policy over some days."""
    found = {}
    for name, moments in trained.items():
        values = [life.worth(number, champion) for number, champion in zip(days, champions(moments, days), strict=True)]
        found[name] = sum(values) / len(values)
        tell(f"{name}: {found[name]:.4f} with {len(moments) - 1} trainings")
    return found


def plans(end: int) -> dict[str, list[int]]:
    """Return when each policy of the calendar trains; all have the first model, and the same number of trainings at most.

    Daily has spent them before anything befalls; evenly is what a calendar can do at best that knows when the budget ends.
    """
    weekly = [FIRST, *range(FIRST + 7, end, 7)][: BUDGET + 1]
    evenly = [FIRST + number * (end - FIRST) // (BUDGET + 1) for number in range(BUDGET + 1)]
    return {"never": [FIRST], "weekly": weekly, "daily": [FIRST + number for number in range(BUDGET + 1)], "evenly": evenly}


def lived(life: Life, end: int) -> dict[str, Any]:
    """Return what the loop saw and did up to a day, and what each policy was worth from the onset on."""
    seen = loop(life, range(FIRST + 1, end + 1), FIRST, LOOP, budget=BUDGET, tell=tell)
    trained = {**plans(end), "loop": [FIRST, *(one["day"] for one in seen if one["trains"])]}
    for number in sorted({one for moments in trained.values() for one in moments}):
        life.train(number)
    days = list(range(ONSET, end, EVERY))
    return {"seen": seen, "trained": trained, "worth": worths(life, trained, days), "days": days}


def shift(base: Life, root: Path, name: Shift) -> dict[str, Any]:
    """Return what became of a shift."""
    end = ONSET + AFTER
    life = forked(base, root / str(name), (f"{name}@{day(ONSET):%Y-%m-%d}",))
    life.land(ONSET, end)
    life.features(end)
    return lived(life, end)


def stationary(base: Life, root: Path) -> dict[str, Any]:
    """Return what the loop was alarmed by where nothing happened."""
    end = FIRST + QUIET
    life = forked(base, root / "stationary")
    life.land(ONSET, end)
    life.features(end)
    return lived(life, end)


def fault(base: Life, root: Path, name: Fault) -> dict[str, Any]:
    """Return what became of a fault of one day: how the batch fared, and what triage says of the next days."""
    life = forked(base, root / "fault")
    blocked = life.enters(ONSET, name)
    if blocked:
        return {"blocked": blocked, "looks": []}
    life.land(ONSET + 1, ONSET + 3)
    life.features(ONSET + 3)
    return {"blocked": None, "looks": [life.look(number, FIRST) for number in range(ONSET + 1, ONSET + 4)]}


def answered(name: str, found: dict[str, Any], is_fault: bool) -> dict[str, Any]:
    """Return {"action", "days", "why", "told"}: the first action that was asked for, and after how many days."""
    if is_fault:
        if found["blocked"]:
            return {"action": "block", "days": 0, "why": f"validation: {found['blocked']}", "told": True}
        looks = [(number + 1, one) for number, one in enumerate(found["looks"])]
    else:
        looks = [(one["day"] - ONSET, one) for one in found["seen"] if one["day"] > ONSET]
    told = any(one.get("alerts") for _, one in looks)
    for days, one in looks:
        if one["action"] != "nothing":
            return {"action": one["action"], "days": days, "why": one["reasons"][0], "told": True}
    return {"action": "nothing", "days": None, "why": "", "told": told}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path("var/bench/loop"), help="where the shops live")
    parser.add_argument("--only", nargs="*", help="some of stationary, the shifts and the faults")
    arguments = parser.parse_args()
    root = arguments.home.resolve()
    base = begun(root / "base", ONSET)
    base.train(FIRST)
    found: dict[str, Any] = {}
    for name in [*Fault, *Shift, "stationary"]:
        if arguments.only and str(name) not in arguments.only:
            continue
        print(name, flush=True)
        if not isinstance(name, Fault):  # what all these share is trained once
            for number in sorted({one for moments in plans(ONSET + 1).values() for one in moments if one <= ONSET}):
                base.train(number)
        act = (
            stationary if name == "stationary" else (lambda *asked, name=name: (fault if isinstance(name, Fault) else shift)(*asked, name))
        )
        found[str(name)] = kept(root / "results" / f"{name}.json", lambda act=act: act(base, root))
    publish_page(found)


def publish_page(found: dict[str, Any]) -> None:
    """Print the tables and write the page."""
    rows: list[dict[str, Any]] = []
    confusion = {(right, said): 0 for right in ("block", "retrain", "rebuild", "nothing") for said in ACTIONS}
    print(f"\nWhat was found and asked for, on {machine()}")
    for name, right in RIGHT.items():
        if str(name) not in found:
            continue
        said = answered(str(name), found[str(name)], isinstance(name, Fault))
        met = said["action"] in right
        confusion[min(right, key=len), said["action"]] += 1
        days = "-" if said["days"] is None else said["days"]
        print(
            f"  {name:<16} {said['action']:<14} after {days} days  {'right' if met else f'WRONG, right is {sorted(right)}'}  {'told ' if said['told'] else ''}{said['why'][:110]}"
        )
        rows.append(
            {
                "case": f"{name}: days to the first action",
                "ours": said["days"],
                "peer": None,
                "unit": said["action"],
                "ratio": None,
                "target": " or ".join(sorted(right)),
                "met": met,
            }
        )
    print("\n  right action     " + "".join(f"{said:>15}" for said in ACTIONS))
    for right in ("block", "retrain", "rebuild", "nothing"):
        print(f"  {right:<16} " + "".join(f"{confusion[right, said]:>15}" for said in ACTIONS))
    if quiet := found.get("stationary"):
        false = [one for one in quiet["seen"] if one["action"] != "nothing"]
        print(
            f"\n  {len(quiet['seen'])} quiet days: {len(false)} with an action: {[(one['day'], one['action'], one['reasons'][0][:120]) for one in false]}"
        )
        rows.append(
            {
                "case": f"actions on {len(quiet['seen'])} quiet days",
                "ours": len(false),
                "peer": None,
                "unit": "days",
                "ratio": None,
                "target": "<= 1",
                "met": len(false) <= 1,
            }
        )
    print("\n  worth by the simulator's truth (0 random, 1 the best ten), trainings after the first")
    for name in (*Shift, "stationary"):
        if one := found.get(str(name)):
            counts = {policy: len(moments) - 1 for policy, moments in one["trained"].items()}
            print(f"  {name:<16} " + "  ".join(f"{policy} {value:.4f} ({counts[policy]})" for policy, value in one["worth"].items()))
            for peer in ("never", "weekly", "daily", "evenly"):
                ours, theirs = one["worth"]["loop"], one["worth"][peer]
                rows.append(
                    {
                        "case": f"{name}: worth of the loop ({counts['loop']} trainings) against {peer} ({counts[peer]})",
                        "ours": round(ours, 4),
                        "peer": round(theirs, 4),
                        "unit": "share of the taste that could be met",
                        "ratio": round(ours / theirs, 3),
                        "target": ">= 1",
                        "met": ours >= theirs,
                    }
                )
    notes = f"1,500 users, 400 items, 2,500 events a day; first model on day {FIRST}, shifts and faults on day {ONSET}, {AFTER} days after a shift; at most {BUDGET} trainings a policy; what is trained serves."
    write_page("loop-policies", rows, notes)


if __name__ == "__main__":
    main()
