"""Drift: what a check costs beside Evidently's, how often it is wrong where nothing changed, and what it sees where something did.

Cost: frozen bins counted, PSI, thresholds and verdict of a table, against Evidently's PSI of the same columns, each in a process of its
own with one thread. False alarms: two samples of one world; a fixed PSI of 0.1 and 0.2 on deciles, Evidently's default, and ours. Power:
changes of known size. A calendar: whole checks, day after day, of a world that has weeks and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from drift_worlds import WORLDS, column, evidently_psi, fixed, table, zipf
from one_run import in_process, machine, measured, write_page

from pipelines.config import REPOSITORY
from pipelines.decision_policies import DriftPolicy
from pipelines.evaluation import psi
from pipelines.monitoring import comparison
from pipelines.registry import population
from pipelines.window import DAY, utc

SHOWN = REPOSITORY / "docs" / "decisions"
MONDAY = utc("2025-03-03")
POLICY = DriftPolicy()
FEATURES = 20  # of a check, for which chance is corrected
SIZES = (300, 500, 1000, 2000, 5000, 20_000)
TESTS = ("fixed 0.1", "fixed 0.2", "Evidently", "ours")
STYLES = {"fixed 0.1": ("o", ":"), "fixed 0.2": ("s", "--"), "Evidently": ("^", "-."), "ours": ("D", "-")}


def cost(who: str, rows: int, columns: int) -> dict[str, Any]:
    """Measure one side of the comparison of two tables."""
    before, after = (table(rows, columns, seed) for seed in (1, 2))
    if who == "evidently":
        import pandas as pd
        from evidently import DataDefinition, Dataset, Report
        from evidently.metrics import ValueDrift

        numbers = [name for name in before if not name.startswith("category")]
        kinds = DataDefinition(numerical_columns=numbers, categorical_columns=[name for name in before if name.startswith("category")])
        frames = [pd.DataFrame(values) for values in (after, before)]

        def run() -> None:
            Report([ValueDrift(column=name, method="psi") for name in before]).run(*(Dataset.from_pandas(f, kinds) for f in frames)).dict()

        return measured(run)
    now, then = ({name: column(values) for name, values in side.items()} for side in (after, before))
    if who == "freeze":
        return measured(lambda: {name: psi.reference(values, POLICY.bins) for name, values in then.items()})
    profile = population.Profile(MONDAY, {name: psi.reference(values, POLICY.bins) for name, values in then.items()}, {}, {}, {})
    comparison.compare(profile, {name: values.slice(0, 1000) for name, values in now.items()}, MONDAY, POLICY)  # what is imported is
    return measured(lambda: comparison.compare(profile, now, MONDAY, POLICY))


def verdicts(before: np.ndarray, after: np.ndarray, *, evidently: bool) -> dict[str, bool]:
    """Return who says that a column drifted; ours is that of one column among `FEATURES`."""
    reference, now = psi.reference(column(before), POLICY.bins), column(after)
    counted = psi.counts(reference, now)
    moved = psi.psi(reference.counted, counted, POLICY.smoothing)
    chance = psi.critical_value(reference.counted, counted, POLICY.false_alarm_rate, FEATURES)
    textbook = fixed(before, after)
    found = {
        "fixed 0.1": textbook > 0.1,
        "fixed 0.2": textbook > 0.2,
        "ours": moved > max(POLICY.psi_threshold, chance),
        "ours, moved": moved > max(POLICY.psi_moved, chance),
    }
    return found | ({"Evidently": evidently_psi(before, after) > 0.1} if evidently else {})


def rates(world: str, n: int, draws: int, evidently_draws: int) -> dict[str, float]:
    """Return how often each says that a world drifted, between two samples of n rows."""
    was, is_, _ = WORLDS[world]
    said: dict[str, list[bool]] = {}
    for draw in range(draws):
        rng = np.random.default_rng((n, draw))
        for who, verdict in verdicts(was(rng, n), is_(rng, n), evidently=draw < evidently_draws).items():
            said.setdefault(who, []).append(bool(verdict))
    return {who: float(np.mean(values)) for who, values in said.items()}


def calendar(days: int, n: int, policy: DriftPolicy) -> dict[str, float]:
    """Check a world of weeks day after day; return the share of checks with any alarm, and of features that alarm a day."""
    checks = features = 0
    profile = None
    for day in range(days):
        rng = np.random.default_rng((5, day))
        if day % 50 == 0:  # a reference has its own luck: another one now and then
            week = {back: _weekday(np.random.default_rng((6, day, back)), back, n) for back in range(7)}
            references = {name: psi.reference(values, policy.bins) for name, values in week[0].items()}
            counted = {
                (MONDAY + back * DAY).isoweekday(): {
                    name: tuple(psi.counts(references[name], one).tolist()) for name, one in columns.items()
                }
                for back, columns in week.items()
                if back
            }
            profile = population.Profile(MONDAY, references, {}, {}, {}, counted)
        found = comparison.compare(profile, _weekday(rng, day % 7, n), MONDAY + (7 + day % 7) * DAY, policy)
        alarms = sum(one.drifted or one.moved for one in found.features.values())
        checks, features = checks + bool(alarms), features + alarms
    return {"check": checks / days, "feature": features / (days * FEATURES), "trainings_a_month": 30 * checks / days}


def _weekday(rng: np.random.Generator, weekday: int, n: int) -> population.Columns:
    level = 1.0 + 0.5 * (weekday >= 5)
    found = {f"user_daily__f{place}": rng.lognormal(level, 1.0, n) for place in range(FEATURES - 4)}
    found |= {f"user_daily__n{place}": rng.poisson(3 * level, n).astype(float) for place in range(2)}
    found["user_daily__holed"] = np.where(rng.random(n) < 0.2, np.nan, rng.normal(level, 1.0, n))
    found["traffic__category"] = zipf(rng, n)
    return {name: column(values) for name, values in found.items()}


def plot(false_alarms: dict[int, dict[str, float]], power: dict[str, dict[int, dict[str, float]]]) -> None:
    """Draw false alarms and power against rows, readable without colour."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"svg.hashsalt": "reloop", "font.size": 9}):
        figure, axes = plt.subplots(figsize=(6.2, 3.4))
        for who in TESTS:
            marker, line = STYLES[who]
            sizes = [n for n in false_alarms if who in false_alarms[n]]
            axes.plot(sizes, [100 * false_alarms[n][who] for n in sizes], marker=marker, linestyle=line, color="black", label=who)
        axes.axhline(1, color="grey", linewidth=0.8)
        axes.set(xscale="log", xlabel="rows on either side", ylabel="false alarms, % of columns", title="Nothing changed")
        axes.legend(frameon=False)
        figure.savefig(SHOWN / "drift-false-alarms.svg", metadata={"Date": None}, bbox_inches="tight")
        figure, axes = plt.subplots(figsize=(6.2, 3.4))
        for place, (world, found) in enumerate(power.items()):
            moved = [100 * max(found[n]["ours, moved"], found[n]["ours"]) for n in found]
            axes.plot(
                list(found), moved, marker="osD^vx"[place % 6], linestyle=("-", "--", ":", "-.")[place % 4], color="black", label=world
            )
        axes.axhline(90, color="grey", linewidth=0.8)
        axes.set(xscale="log", ylim=(-3, 103), xlabel="rows on either side", ylabel="seen, % of draws", title="Something changed")
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        figure.savefig(SHOWN / "drift-power.svg", metadata={"Date": None}, bbox_inches="tight")


def line(case: str, ours: float, peer: float, unit: str, target: str, *, met: bool, ratio: float | None = None) -> dict[str, Any]:
    """Return one line of figures."""
    ratio = (peer / ours if ours else float("inf")) if ratio is None else ratio
    told = round(ratio, 3) if np.isfinite(ratio) else None
    return {"case": case, "ours": round(ours, 4), "peer": round(peer, 4), "unit": unit, "ratio": told, "target": target, "met": bool(met)}


def costs(rows: int, columns: int, repeats: int) -> list[dict[str, Any]]:
    """Return the lines of cost."""
    os.environ |= {"OMP_NUM_THREADS": "1", "ARROW_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    step = ("--step", "{}", str(rows), str(columns))
    spent = {
        who: float(np.median([in_process(__file__, *(part.format(who) for part in step))["cpu_seconds"] for _ in range(times)]))
        for who, times in (("ours", repeats), ("freeze", repeats), ("evidently", max(1, repeats // 3)))
    }
    size = f"{rows / 1e6:g}M rows x {columns} columns"
    both = spent["ours"] + spent["freeze"]
    return [
        line(f"check, {size}, CPU", spent["ours"], spent["evidently"], "s", "ratio >= 50", met=spent["evidently"] >= 50 * spent["ours"]),
        line(f"check and freezing the bins, {size}, CPU", both, spent["evidently"], "s", "", met=True),
    ]


def main() -> None:
    """Run it all, or one measured step in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--draws", type=int, default=200, help="of a world at a size")
    parser.add_argument("--evidently-draws", type=int, default=25)
    parser.add_argument("--days", type=int, default=1000, help="of the calendar")
    parser.add_argument("--step", nargs=3, metavar=("WHO", "ROWS", "COLUMNS"))
    asked = parser.parse_args()
    if asked.step:
        print(json.dumps(cost(asked.step[0], int(asked.step[1]), int(asked.step[2]))))
        return
    lines = costs(asked.rows, asked.columns, asked.repeats)
    calm = {world for world, (_, _, drifts) in WORLDS.items() if not drifts}
    false_alarms: dict[int, dict[str, float]] = {}
    power: dict[str, dict[int, dict[str, float]]] = {}
    for n in SIZES:
        evidently_draws = asked.evidently_draws if n <= 5000 else 0
        found = {world: rates(world, n, asked.draws if n <= 5000 else asked.draws // 4, evidently_draws) for world in WORLDS}
        false_alarms[n] = {who: float(np.mean([found[world][who] for world in calm])) for who in found["normal, unchanged"]}
        for world in WORLDS.keys() - calm:
            power.setdefault(world, {})[n] = found[world]
        for world, rate in found.items():
            print(f"{n:>6} {world:<36} " + "  ".join(f"{who} {rate.get(who, float('nan')):.2f}" for who in (*TESTS, "ours, moved")))
    for n, rate in false_alarms.items():
        lines.append(
            line(
                f"false alarms a column, {n} rows, against fixed 0.2",
                rate["ours"],
                rate["fixed 0.2"],
                "share",
                "< 0.01",
                met=rate["ours"] < 0.01,
            )
        )
        if "Evidently" in rate:
            lines.append(
                line(
                    f"false alarms a column, {n} rows, against Evidently",
                    rate["ours"],
                    rate["Evidently"],
                    "share",
                    "< 0.01",
                    met=rate["ours"] < 0.01,
                )
            )
    for world in (world for world in WORLDS if world not in calm):
        rate = power[world][5000]
        seen = max(rate["ours"], rate["ours, moved"])
        lines.append(
            line(
                f"seen at 5,000 rows: {world}",
                seen,
                rate["Evidently"],
                "share",
                ">= 0.9",
                met=seen >= 0.9,
                ratio=seen / max(rate["Evidently"], 1e-9) if rate["Evidently"] else None,
            )
        )
    for name, policy in (("default", POLICY), ("chance alone decides", DriftPolicy(psi_threshold=0.0, psi_moved=0.0))):
        found = calendar(asked.days, 1000, policy)
        lines.append(
            line(
                f"{asked.days} days of weeks alone, {name}: checks that alarm",
                found["check"],
                0.05,
                "share",
                "<= 0.05",
                met=found["check"] <= 0.05,
            )
        )
        lines.append(
            line(
                f"{asked.days} days of weeks alone, {name}: features that alarm a day",
                found["feature"],
                0.01,
                "share",
                "< 0.01",
                met=found["feature"] < 0.01,
            )
        )
    rng = np.random.default_rng(3)
    before, after = rng.normal(size=5000), rng.normal(0.5, 1, 5000)
    alone, beside = (fraction(before, values) for values in (after, np.append(after, 1e6)))
    lines.append(
        line(
            "PSI changes by one outlier of a million",
            abs(beside[0] / alone[0] - 1),
            abs(beside[1] / alone[1] - 1),
            "share",
            "< 0.05",
            met=abs(beside[0] / alone[0] - 1) < 0.05,
        )
    )
    plot(false_alarms, dict(sorted(power.items())))
    print(f"drift, on {machine()}")
    for one in lines:
        print(
            f"  {one['case']:<66} ours {one['ours']:>8.4f}  peer {one['peer']:>8.4f} {one['unit']:<6} {one['target']:<12} {'met' if one['met'] else 'NOT MET'}"
        )
    notes = "Peers: Evidently's own PSI (ValueDrift, method psi, its default threshold 0.1), a fixed PSI on deciles of the reference. One thread each."
    write_page("drift", lines, notes)


def fraction(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """Return our PSI and Evidently's."""
    reference = psi.reference(column(before), POLICY.bins)
    return psi.psi(reference.counted, psi.counts(reference, column(after))), evidently_psi(before, after)


if __name__ == "__main__":
    Path(SHOWN).mkdir(parents=True, exist_ok=True)
    main()
