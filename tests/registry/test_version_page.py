"""What a reviewer finds on a version's page in MLflow."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from trained_shop import SECOND

from pipelines import cycle
from pipelines.config import Home
from pipelines.registry import lineage, tracking, version_page

SLICE = {"ndcg_at_10": 0.25, "lower": 0.2, "upper": 0.3, "n_users": 120}
SAID: dict[str, Any] = {
    "as_of": "2025-03-03T00:00:00+00:00",
    "cutoff": "2025-02-24T00:00:00+00:00",
    "serves": "ranked",
    "metrics": {
        "ndcg_at_10": 0.31,
        "lower": 0.3,
        "upper": 0.32,
        "n_users": 1234,
        "reasons": ["the ranked list does not beat the baseline rrf: lower bound -0.0010"],
        "slices": {"light_users": SLICE, "cold_users": {"ndcg_at_10": None, "lower": None, "upper": None, "n_users": 0}},
        "calibration": None,
    },
    "attribution": [
        {"step": "als", "metric": "ndcg_at_10", "value": 0.2, "against": None, "difference": None, "lower": None, "upper": None},
        {"step": "ranked", "metric": "ndcg_at_10", "value": 0.31, "against": "blend", "difference": 0.02, "lower": 0.01, "upper": 0.03},
    ],
}
TRACED: dict[str, Any] = {
    "digest": "d" * 64,
    "decisions": [],
    "git_commit": "abc",
    "data": {"lake": 3, "digest": "e" * 64, "partitions": {f"events/event_date=2025-02-0{n}/events.parquet": "" for n in (1, 2)}},
    "airflow": {"dag": "reloop_train", "run": "manual__1", "url": "http://127.0.0.1:8080/dags/reloop_train/runs/manual__1"},
    "environment": "local",
}


def text(**changed: Any) -> str:
    return "\n".join(version_page.card(7, SAID, TRACED | changed, "#/experiments/1/runs/r/artifacts/version-7"))


def test_the_card_says_quality_slices_steps_and_origin() -> None:
    card = text()
    assert "## reloop 7: as of 2025-03-03, serves the ranked list" in card
    assert "**Not decided on yet.**" in card
    assert "**NDCG@10** 0.3100 [0.3000, 0.3200], 1,234 users" in card
    assert "| light_users | 0.2500 [0.2000, 0.3000], 120 users |" in card
    assert "| cold_users | unmeasured (0 users) |" in card
    assert "| ranked | 0.3100 | blend | +0.0200 [+0.0100, +0.0300] |" in card
    assert "[`reloop_train` / `manual__1`](http://127.0.0.1:8080/dags/reloop_train/runs/manual__1)" in card
    assert "[by slice](#/experiments/1/runs/r/artifacts/version-7/ndcg_by_slice.svg)" in card
    assert "reliability" not in card, "no link leads nowhere"
    assert "2 days, 2025-02-01 to 2025-02-02" in card


def test_the_newest_decision_leads_with_who_and_why_and_names_from_data_are_no_markup() -> None:
    first = {"seq": 1, "kind": "waiting for review", "reasons": ["an earlier reason"]}
    last = {"seq": 2, "kind": "promoted", "author": "a](http://x)", "champion_before": 3, "reasons": ["better by <b>much</b>"]}
    card = text(decisions=[first, last])
    assert "**promoted** by a\\](http://x) (entry 2 of the ledger); champion before: 3." in card
    assert "- better by \\<b\\>much\\</b\\>" in card
    assert "an earlier reason" not in card


def test_what_mlflow_has_no_room_for_is_cut_between_lines_and_said() -> None:
    cut = version_page._cut("\n".join(f"line {number}" for number in range(2000)))
    assert len(cut) <= version_page.LONGEST
    *lines, empty, last = cut.split("\n")
    assert empty == ""
    assert last == "_cut; the whole card is in the run_"
    assert lines == [f"line {number}" for number in range(len(lines))]


def test_the_plots_are_sound_say_the_same_for_the_same_figures_and_need_no_colour() -> None:
    reference = {"movement": {"user_daily__events_7d": {"7": 0.03, "14": 0.1}}, "importance": {"item_daily__events_30d": 0.4}}
    drift = {"user_daily__events_7d": {"psi": 0.3, "threshold": 0.2}, "unmeasured": {"psi": None, "threshold": 0.2}}
    once, again = (version_page.plots(7, SAID, reference, drift) for _ in range(2))
    assert once == again
    assert set(once) == {"ndcg_by_slice.svg", "importance.svg", "psi.svg"}
    for name, svg in once.items():
        ET.fromstring(svg)
        assert "reloop 7, 2025-03-03" in svg, name
        colours = {word for word in svg.replace(";", " ").replace('"', " ").split() if word.startswith("#") and len(word) == 7}
        assert all(colour[1:3] == colour[3:5] == colour[5:7] for colour in colours), (name, colours)
    assert "light_users (120)" in once["ndcg_by_slice.svg"]
    assert "cold_users (0)" in once["ndcg_by_slice.svg"]
    assert "user_daily__events_7d" in once["psi.svg"]
    assert "unmeasured" not in once["psi.svg"]


def test_a_registered_version_carries_its_card_plots_tables_and_lineage(trained: Home) -> None:
    books = tracking.client(trained)
    version = books.get_model_version(tracking.MODEL, "2")
    digest = cycle.records(trained, SECOND, "bundle")[0]["digest"]
    assert version.description.startswith("## reloop 2: as of 2025-02-17")
    assert len(version.description) <= version_page.LONGEST
    assert {"quality", "data", "environment", "libraries", "part.items", "git_commit", "trained_on.universe"} <= set(version.tags)
    names = {Path(entry.path).name for entry in books.list_artifacts(version.run_id, version_page.folder(2))}
    assert {"card.md", "lineage.json", "ndcg_by_slice.svg", "importance.svg", "psi.svg", "attribution.json"} <= names
    told = json.loads(Path(books.download_artifacts(version.run_id, "version-2/lineage.json")).read_text())
    assert told["digest"] == digest
    assert told["data"] == lineage.of_bundle(trained, digest)["data"]
    table = books.load_table(books.get_run(version.run_id).info.experiment_id, "version-2/attribution.json", run_ids=[version.run_id])
    assert {"step", "value", "difference", "lower", "upper"} <= set(table.columns)
    assert set(table["slice"]) == {"all"}


@pytest.mark.parametrize("metric", ["calibration"])
def test_a_ranker_that_tells_probabilities_has_its_reliability_plotted(metric: str) -> None:
    bins = [
        {"promised": 0.1, "happened": 0.12, "lower": 0.1, "upper": 0.14},
        {"promised": 0.5, "happened": 0.4, "lower": 0.3, "upper": 0.5},
    ]
    said = SAID | {"metrics": SAID["metrics"] | {metric: {"bins": bins, "ece": 0.01, "brier": 0.1}}}
    found = version_page.plots(7, said, {"movement": {}, "importance": {}}, {})
    assert "ECE 0.0100" in found["reliability.svg"]
    assert "history is too short to tell" in found["psi.svg"]
    assert list(found)[-1] == version_page.LAST, "a page that was begun is finished by a rerun: its mark comes last"
