"""The figures of a report as Prometheus text (exposition format 0.0.4), for a node exporter's textfile folder or any scraper of files.

Names of features, causes and verdicts are the only labels: no user, no item. A gauge that was not
measured is left out, for 0 would be a lie and NaN an alarm.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypeAlias

Sample: TypeAlias = tuple[str, dict[str, str], float | None]

HELP: Final = {
    "reloop_psi": ("gauge", "Population stability index of a feature against the champion's reference."),
    "reloop_psi_threshold": ("gauge", "What the PSI of a feature must exceed to count as drift."),
    "reloop_null_ratio": ("gauge", "Share of a feature's rows without a value."),
    "reloop_drift_checks_total": ("counter", "Drift checks by their verdict."),
    "reloop_drift_trigger_total": ("counter", "Trainings that were due, by what made them so."),
    "reloop_triage_total": ("counter", "Triages by the action they asked for."),
    "reloop_skew_mismatch_ratio": ("gauge", "Share of logged feature values that differ from those recomputed offline."),
    "reloop_skew_score_difference": ("gauge", "Largest relative difference of a logged score from the model's."),
    "reloop_skew_requests": ("gauge", "Requests that were recomputed."),
    "reloop_champion_age_seconds": ("gauge", "From the champion's training to the report."),
    "reloop_champion_info": ("gauge", "1 for the champion's model version."),
    "reloop_champion_ndcg": ("gauge", "NDCG@10 of the champion on fresh labels."),
    "reloop_champion_ndcg_lower": ("gauge", "Lower end of its interval."),
    "reloop_champion_ndcg_upper": ("gauge", "Upper end of its interval."),
    "reloop_coverage_ratio": ("gauge", "Share of the catalogue in anyone's first ten, as the gate measured it."),
    "reloop_gate_decisions_total": ("counter", "Entries of the ledger by what came of them and the gate's track."),
    "reloop_rows_total": ("counter", "Event rows by their fate."),
    "reloop_alarms": ("gauge", "What a person should look at now."),
    "reloop_pipeline_last_success_timestamp": ("gauge", "The newest as_of for which a stage ended well, seconds since 1970."),
}


def text(figures: Mapping[str, Any]) -> str:
    """Return the figures as Prometheus text, metrics and labels in a fixed order."""
    lines: list[str] = []
    samples = list(_samples(figures))
    for name, (kind, about) in HELP.items():
        known = [(labels, value) for metric, labels, value in samples if metric == name and value is not None and math.isfinite(value)]
        if known:
            lines += [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]
            lines += [f"{name}{_labels(labels)} {_number(value)}" for labels, value in known]
    return "\n".join(lines) + "\n"


def _samples(figures: Mapping[str, Any]) -> Iterable[Sample]:
    yield from _drift(figures["cycles"], figures["counts"])
    yield from _skew(figures["cycles"])
    yield from _champion(figures["champion"])
    yield from _pipeline(figures["cycles"], figures["counts"])
    yield "reloop_alarms", {}, len(figures["alarms"])


def _drift(cycles: Sequence[Mapping[str, Any]], counts: Mapping[str, Any]) -> Iterable[Sample]:
    drift = next((one["drift"] for one in reversed(cycles) if one["drift"]), None)
    for feature, found in sorted((drift or {"features": {}})["features"].items()):
        yield "reloop_psi", {"feature": feature}, found["psi"]
        yield "reloop_psi_threshold", {"feature": feature}, found["threshold"]
        yield "reloop_null_ratio", {"feature": feature}, found.get("missing")
    for verdict, count in counts["drift"].items():
        yield "reloop_drift_checks_total", {"verdict": verdict}, count
    for cause, count in counts["triggers"].items():
        yield "reloop_drift_trigger_total", {"cause": cause}, count
    for action, count in counts["triage"].items():
        yield "reloop_triage_total", {"action": action}, count


def _skew(cycles: Sequence[Mapping[str, Any]]) -> Iterable[Sample]:
    found = next((one["skew"] for one in reversed(cycles) if one.get("skew")), None)
    if found:
        yield "reloop_skew_mismatch_ratio", {}, found.get("rate")
        yield "reloop_skew_score_difference", {}, found.get("largest") if found.get("scores") else None
        yield "reloop_skew_requests", {}, found.get("requests")


def _champion(champion: Mapping[str, Any] | None) -> Iterable[Sample]:
    if champion:
        yield "reloop_champion_age_seconds", {}, champion["age_seconds"]
        yield "reloop_champion_info", {"version": str(champion["version"])}, 1
        quality = champion["quality"] or {}
        for name, field in (("", "ndcg_at_10"), ("_lower", "lower"), ("_upper", "upper")):
            yield f"reloop_champion_ndcg{name}", {}, quality.get(field)


def _pipeline(cycles: Sequence[Mapping[str, Any]], counts: Mapping[str, Any]) -> Iterable[Sample]:
    coverage: Mapping[str, Any] = next((one["coverage"] for one in reversed(cycles) if one["coverage"]), {})
    for model, value in sorted(coverage.items()):
        if isinstance(value, int | float):
            yield "reloop_coverage_ratio", {"model": model}, value
    for one in counts["decisions"]:
        yield "reloop_gate_decisions_total", {"result": one["result"], "track": one["track"]}, one["count"]
    for fate, count in counts["rows"].items():
        yield "reloop_rows_total", {"fate": fate}, count
    for step, when in counts["last_success"].items():
        yield "reloop_pipeline_last_success_timestamp", {"step": step}, datetime.fromisoformat(when).timestamp()


def _labels(labels: Mapping[str, str]) -> str:
    told = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return f"{{{told}}}" if told else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))
