"""What the loop has measured and decided up to a moment, gathered from its records and its ledger; nothing is measured anew.

One structure feeds the page for people, the Prometheus text and the JSON, so that they cannot differ.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from pipelines import cycle, publish
from pipelines.config import Home
from pipelines.monitoring import comparison, evidently_page, exposition, report_page, skew
from pipelines.registry import gate, ledger
from pipelines.registry import releases as pointers
from pipelines.window import DAY, stamp, stamped, utc

SHOWN: Final = 53  # cycles a page shows: a year of weeks
FATES: Final = ("read", "accepted", "quarantined", "duplicates")

Figures = dict[str, Any]


def folder(home: Home) -> Path:
    """Return where the pages of the runs lie; `index.html` lies above it."""
    return home.reports / "runs"


def write(home: Home, as_of: datetime) -> Figures:
    """Publish the page of a run, the index, the metrics and the JSON, and return the figures; safe to repeat."""
    found = gather(home, as_of)
    publish.write_json(folder(home) / f"{stamp(as_of)}.json", found)
    publish.write_text(folder(home) / f"{stamp(as_of)}.html", report_page.page(found, links(home, as_of, "..")))
    known = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder(home).glob("*.json"))]
    publish.write_text(home.reports / "index.html", report_page.index(known))
    newest = max(known, key=lambda one: str(one["as_of"]))
    if newest["as_of"] == found["as_of"]:  # a rerun of a past day must not turn the clock of a dashboard back
        publish.write_text(home.reports / "metrics.prom", exposition.text(found))
    return found


def gather(home: Home, as_of: datetime) -> Figures:
    """Return the figures of everything up to and at `as_of`.

    Returns:
        {"as_of", "champion" or None, "cycles": oldest first, "decisions": oldest first, "counts", "alarms"}; what was not measured is None.
    """
    moment = utc(as_of)
    entries = [entry for entry, when in _placed(ledger.history(home)) if when is None or when <= moment]
    cycles = [_cycle(home, when) for when in moments(home) if when <= moment]
    reigns = _reigns(entries)
    for one in cycles:
        one["champion"] = _champion(reigns, utc(one["as_of"]))
    return {
        "as_of": moment.isoformat(),
        "champion": _now(home, moment, reigns, cycles),
        "cycles": cycles[-SHOWN:],
        "decisions": [_decision(entry) for entry in entries][-SHOWN:],
        "counts": _counts(cycles, entries),
        "alarms": [alarm for one in cycles[-1:] for alarm in _alarms(one)],
    }


def _placed(entries: Iterable[Figures]) -> list[tuple[Figures, datetime | None]]:
    """Return ledger entries with the cycle after which each was made, None before the first.

    What the gate found belongs to its own cycle. A rollback, a person's answer or a release names an old cycle, perhaps, but came
    after the newest one of which the ledger told by then.
    """
    found: list[tuple[Figures, datetime | None]] = []
    newest: datetime | None = None
    for entry in entries:
        own = utc(entry["as_of"]) if entry.get("as_of") else None
        newest = max(filter(None, (newest, own)), default=None)
        found.append((entry, own if own is not None and ledger.spoken(entry) else newest))
    return found


def moments(home: Home) -> list[datetime]:
    """Return the as_of of every cycle that left a record, oldest first; what else lies there is none."""
    found = [stamped(path.name) for path in sorted((home.reports / "cycles").glob("*"))]
    return [moment for moment in found if moment is not None]


def _cycle(home: Home, when: datetime) -> Figures:
    """Return what one cycle's records say; a section is None where its stage did not end."""
    records = [cycle.read(path) for path in sorted(cycle.folder(home, when).glob("*.json"))]
    done = {record["stage"]: record for record in records if record["state"] == "done" and record.get("key") is None}
    batches = [record for record in records if record["stage"] == "ingest" and record["state"] == "done"]
    return {
        "as_of": when.isoformat(),
        "drift": _drift(home, when, done.get("drift")),
        "triage": _section(done.get("triage"), ("action", "cause", "causes", "reasons", "alerts")),
        "trigger": _section(done.get("trigger"), ("due", "reasons", "kinds", "scope", "requested")),
        "quality": _quality(done),
        "gate": _section(done.get("gate"), ("verdict", "outcome", "track", "champion_before", "champion_after", "reasons")),
        "ranking": _section(done.get("ranking"), ("ndcg_at_10", "lower", "upper", "n_users", "best_single")),
        "coverage": ((done.get("gate") or {}).get("figures") or {}).get("coverage"),
        "skew": _section(
            done.get("skew"), ("verdict", "reasons", "requests", "values", "wrong", "rate", "scores", "wrong_scores", "largest")
        ),
        "rows": {fate: sum(batch["rows"][fate] for batch in batches) for fate in FATES} if batches else None,
        "done": sorted({record["stage"] for record in records if record["state"] == "done"}),
        "failed": {record["stage"]: record["error"] for record in records if record["state"] == "failed"},
    }


def _reigns(entries: list[Figures]) -> list[tuple[datetime, Figures]]:
    """Return after which cycle each champion began to serve, with the entry that says so."""
    return [(when, entry) for entry, when in _placed(entries) if when is not None and entry.get("as_of") and entry["kind"] in ledger.REIGNS]


def _section(record: Figures | None, names: Iterable[str]) -> Figures | None:
    return None if record is None else {name: record[name] for name in names if name in record}


def _drift(home: Home, when: datetime, record: Figures | None) -> Figures | None:
    """Return a day's drift check with what its report adds to the record: shares of missing values."""
    if record is None:
        return None
    file = home.reports / "drift" / f"{stamp(when)}.json"
    full = json.loads(file.read_text(encoding="utf-8"))["features"] if file.is_file() else {}
    features = {
        name: {"psi": found["psi"], "threshold": found["threshold"]}
        | {field: full[name][field] for field in ("missing", "reference_missing", "drifted", "importance") if field in full.get(name, {})}
        for name, found in record["features"].items()
    }
    return {"verdict": record["verdict"], "reasons": record["reasons"], "features": features, "champion": record.get("champion")}


def _quality(done: dict[str, Figures]) -> Figures | None:
    """Return the live champion's NDCG@10 on fresh labels: what the monitor measured, else what the gate held the challenger against."""
    monitored = done.get("quality") or {}
    if isinstance(monitored.get("champion"), dict):
        return {**monitored["champion"], "popular": (monitored.get("popular") or {}).get("ndcg_at_10"), "measured_by": "monitor"}
    gated = done.get("gate") or {}
    figures = gated.get("figures") or {}
    if gated.get("champion_before") is None or figures.get("base") is None:
        return None
    return {
        "ndcg_at_10": figures["base"],
        "lower": None,
        "upper": None,
        "n_users": figures.get("n_users"),
        "popular": None,
        "measured_by": "gate",
    }


def _champion(reigns: list[tuple[datetime, Figures]], when: datetime) -> Figures | None:
    """Return what served once a cycle was decided, and how old its training was then."""
    served = [entry for moment, entry in reigns if moment <= when]
    if not served:
        return None
    last = served[-1]
    trained = utc(last["as_of"])
    return {"version": last.get("version", last.get("champion_after")), "as_of": trained.isoformat(), "age_days": (when - trained) / DAY}


def _now(home: Home, moment: datetime, reigns: list[tuple[datetime, Figures]], cycles: list[Figures]) -> Figures | None:
    found = _champion(reigns, moment)
    if found is None:
        return None
    measured = [one["quality"] for one in cycles if one["quality"]]
    pointer = pointers.champion(home)
    return found | {
        "age_seconds": found["age_days"] * DAY.total_seconds(),
        "serves_now": pointer is not None and pointer.version == found["version"],
        "quality": measured[-1] if measured else None,
    }


def _decision(entry: Figures) -> Figures:
    figures = entry.get("figures") or {}
    return {
        "seq": entry["seq"],
        "kind": entry["kind"],
        "as_of": entry.get("as_of"),
        "track": entry.get("track"),
        "champion_before": entry.get("champion_before"),
        "champion_after": entry.get("champion_after"),
        "author": entry.get("author"),
        "trigger": (entry.get("trigger") or {}).get("reasons"),
        "reasons": [*([entry["refusal"]] if "refusal" in entry else []), *entry.get("reasons", [])],
        "difference": figures.get("difference"),
        "lower": figures.get("lower"),
    }


def _counts(cycles: list[Figures], entries: list[Figures]) -> Figures:
    """Return how often each thing has happened since the state folder began: counters never shrink as pages move on."""
    decided = Counter((str(entry.get("outcome", entry["kind"])), str(entry.get("track") or "none")) for entry in entries)
    causes: Counter[str] = Counter()
    for one in cycles:
        trigger = one["trigger"]
        if trigger and trigger.get("due"):
            causes.update(trigger.get("kinds") or ["manual" if trigger.get("requested") else "age"])
    return {
        "decisions": [{"result": result, "track": track, "count": count} for (result, track), count in sorted(decided.items())],
        "triggers": dict(sorted(causes.items())),
        "drift": dict(sorted(Counter(one["drift"]["verdict"] for one in cycles if one["drift"]).items())),
        "triage": dict(sorted(Counter(str(one["triage"].get("action")) for one in cycles if one["triage"]).items())),
        "rows": {fate: sum(one["rows"][fate] for one in cycles if one["rows"]) for fate in FATES},
        "last_success": {
            stage: max(one["as_of"] for one in cycles if stage in one["done"])
            for stage in sorted({s for one in cycles for s in one["done"]})
        },
    }


def _alarms(one: Figures) -> Iterable[Figures]:
    """Yield what a person should look at, of the newest cycle."""
    for stage, error in sorted(one["failed"].items()):
        yield {"what": f"{stage} failed", "why": [error]}
    if one["drift"] and one["drift"]["verdict"] == comparison.DRIFT and not one["triage"]:
        yield {"what": "drift", "why": one["drift"]["reasons"]}
    found = one["triage"] or {}
    if found.get("action") not in {None, "nothing"}:
        yield {"what": f"{found['cause']}: {found['action']}", "why": found["reasons"]}
    if found.get("alerts"):
        yield {"what": "the data", "why": found["alerts"]}
    if one["skew"] and one["skew"]["verdict"] == skew.SKEWED:
        yield {"what": "skew", "why": one["skew"]["reasons"]}
    if one["gate"] and one["gate"]["verdict"] == gate.NOT_ENOUGH:
        yield {"what": "the gate has too little evidence", "why": one["gate"]["reasons"][:2]}


def links(home: Home, as_of: datetime, up: str) -> dict[str, str]:
    """Return where to look further, relative to a page `up` folders below the reports; files that are not there are left out."""
    pages = {
        "Evidently, this day": evidently_page.page_file(home, as_of),
        "Data Docs": home.reports / "gx" / "index.html",
        "fairness": home.reports / "fairness" / f"{stamp(as_of)}.html",
        "replay": home.reports / "replay" / "replay.svg",
    }
    found = {name: f"{up}/{file.relative_to(home.reports).as_posix()}" for name, file in pages.items() if file.is_file()}
    return found | servers(home)


def servers(home: Home) -> dict[str, str]:
    """Return the addresses of the servers that run on this state folder, as `make up` recorded them."""
    file = home.root / "stack.json"
    if not file.is_file():
        return {}
    known = json.loads(file.read_text(encoding="utf-8"))
    return {name: str(known[name]) for name in ("mlflow", "airflow") if str(known.get(name, "")).startswith("http://127.0.0.1")}
