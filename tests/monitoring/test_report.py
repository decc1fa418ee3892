"""A page, metrics and JSON of the loop, from records as the stages leave them; what data brings in stays text."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from pipelines import cycle, publish
from pipelines.cli.entry import app
from pipelines.config import Home
from pipelines.monitoring import exposition, line_plot, report, report_page
from pipelines.monitoring.line_plot import Series
from pipelines.registry import ledger, releases
from pipelines.window import stamp, utc

FIRST = utc("2025-02-10")
NASTY = '<script>alert("x")</script>'


def lived(home: Home, weeks: int = 3) -> Home:
    """Leave the records of some cycles: the first releases version 1, the second drifts, the third is blocked and keeps it."""
    for week in range(weeks):
        as_of = FIRST + timedelta(days=7 * week)
        with cycle.stage(home, as_of, "ingest", f"batch-{week}") as record:
            record |= {"rows": {"read": 100, "accepted": 90, "quarantined": 6, "duplicates": 4}, "source": "shop"}
        with cycle.stage(home, as_of, "ranking") as record:
            record |= {"ndcg_at_10": 0.30 + 0.01 * week, "lower": 0.28, "upper": 0.33, "n_users": 900, "best_single": "popular"}
        psi = 0.05 + 0.2 * week
        with cycle.stage(home, as_of, "drift") as record:
            features = {"user_daily__events_7d": {"psi": psi, "threshold": 0.2}, NASTY: {"psi": 0.01, "threshold": 0.2}}
            record |= {"verdict": "drift" if psi > 0.2 else "no drift", "reasons": [f"PSI {psi:.2f}"], "features": features, "champion": 1}
        publish.write_json(
            home.reports / "drift" / f"{stamp(as_of)}.json",
            {"features": {name: {**found, "missing": 0.125} for name, found in features.items()}},
        )
        with cycle.stage(home, as_of, "quality") as record:
            record |= {"champion": {"ndcg_at_10": 0.25, "lower": 0.24, "upper": 0.26, "n_users": 800}, "popular": {"ndcg_at_10": 0.1}}
        with cycle.stage(home, as_of, "triage") as record:
            blocked = week == 2
            record |= {
                "action": "block" if blocked else "nothing",
                "cause": "data fault" if blocked else "nothing",
                "causes": [],
                "reasons": [f"data fault: {NASTY}"] if blocked else ["calm"],
                "alerts": [],
            }
        with cycle.stage(home, as_of, "trigger") as record:
            record |= {"due": week < 2, "reasons": ["because"], "kinds": ["first"] if week == 0 else ["age", "drift"]}
        verdict = "promote" if week == 0 else "keep"
        body = {
            "as_of": as_of.isoformat(),
            "track": "first" if week == 0 else "superiority",
            "champion_before": None if week == 0 else 1,
            "champion_after": 1,
            "reasons": ["it is better" if week == 0 else "it is not"],
            "figures": {"coverage": {"champion": 0.5, "challenger": 0.4}},
        }
        with cycle.stage(home, as_of, "gate") as record:
            record |= {**body, "verdict": verdict}
        if week == 0:
            releases.flip(home, releases.pointer(home), version=1, digest="0" * 64, as_of=as_of.isoformat(), key=None, body=body)
        else:
            releases.keep(home, f"decide/{week}", body)
    return home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Return a home that lived three weeks."""
    return lived(Home(tmp_path))


LAST = FIRST + timedelta(days=14)


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Return what Prometheus' own parser reads."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_are_what_prometheus_reads_and_what_the_records_say(home: Home):
    report.write(home, LAST)
    found = samples((home.reports / "metrics.prom").read_text())
    feature = (("feature", "user_daily__events_7d"),)
    assert found["reloop_psi", feature] == pytest.approx(0.45)
    assert found["reloop_psi_threshold", feature] == 0.2
    assert found["reloop_null_ratio", feature] == 0.125
    assert found["reloop_champion_age_seconds", ()] == 14 * 86_400
    assert found["reloop_champion_ndcg", ()] == 0.25
    assert found["reloop_gate_decisions_total", (("result", "promoted"), ("track", "first"))] == 1
    assert found["reloop_gate_decisions_total", (("result", "kept"), ("track", "superiority"))] == 2
    assert found["reloop_drift_trigger_total", (("cause", "first"),)] == 1
    assert found["reloop_drift_trigger_total", (("cause", "drift"),)] == 1  # the third was not due
    assert found["reloop_drift_checks_total", (("verdict", "drift"),)] == 2
    assert found["reloop_rows_total", (("fate", "quarantined"),)] == 18
    assert found["reloop_pipeline_last_success_timestamp", (("step", "drift"),)] == LAST.timestamp()
    assert ("reloop_psi", (("feature", NASTY),)) in found  # a quote in a label is escaped, not an end of it


def test_what_was_not_measured_has_no_metric(tmp_path: Path):
    home = Home(tmp_path)
    with cycle.stage(home, FIRST, "drift") as record:
        record |= {"verdict": "no champion", "reasons": ["nothing was ever released"], "features": {}}
    report.write(home, FIRST)
    names = {name for name, _ in samples((home.reports / "metrics.prom").read_text())}
    assert "reloop_drift_checks_total" in names
    assert not {"reloop_champion_ndcg", "reloop_champion_age_seconds", "reloop_psi"} & names
    figures = report.gather(home, FIRST)
    figures["champion"] = {"version": 1, "age_seconds": float("nan"), "quality": None}
    assert "reloop_champion_age_seconds" not in exposition.text(figures)


class Seen(HTMLParser):
    """What a browser would find: tags, what it would fetch, and text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.linked: list[str] = []
        self.words = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag and its addresses."""
        self.tags.append(tag)
        given = dict(attrs)
        self.fetched += [value for name in ("src", "srcset", "data") if (value := given.get(name))]
        if tag == "a":
            self.linked.append(given.get("href") or "")

    def handle_data(self, data: str) -> None:
        """Note text."""
        self.words += data


def seen(text: str) -> Seen:
    """Return what a page holds."""
    parser = Seen()
    parser.feed(text)
    return parser


def test_a_page_fetches_nothing_runs_nothing_and_shows_what_data_brought_as_text(home: Home):
    report.write(home, LAST)
    text = (report.folder(home) / "2025-02-24T000000.html").read_text()
    page = seen(text)
    assert "script" not in page.tags
    assert not page.fetched
    assert not re.search(r"@import|url\(", text)
    assert NASTY in page.words
    assert page.words.count("DRIFTED") >= 1
    assert "version 1" in page.words
    assert "data fault: block" in page.words


def test_every_plot_says_in_words_what_it_shows_and_has_its_figures_beside_it(home: Home):
    report.write(home, LAST)
    text = (report.folder(home) / "2025-02-24T000000.html").read_text()
    plots = [ET.fromstring(found) for found in re.findall(r"<svg.*?</svg>", text)]
    assert len(plots) == 4  # quality, age, and a panel for each of two features
    names = [plot.find("title") for plot in plots]
    assert all(name is not None and name.text for name in names)
    assert len({name.get("id") for name in names if name is not None}) == len(plots)
    for plot in plots:
        assert plot.get("role") == "img"
        inks = {value for part in plot.iter() for key in ("fill", "stroke") if (value := part.get(key))}
        assert not inks, "colours are the style sheet's, which is grey"
    assert all(len(set(re.findall("..", ink))) == 1 for ink in re.findall(r"#([0-9a-f]{6})\b", report_page.STYLE))
    assert text.count("<table>") == 5


def test_links_go_where_a_file_is(home: Home):
    evidently = home.reports / "evidently" / f"{stamp(LAST)}.html"
    publish.write_text(evidently, "a page")
    report.write(home, LAST)
    where = report.folder(home)
    local = [link for link in seen((where / "2025-02-24T000000.html").read_text()).linked if "://" not in link]
    assert "../evidently/2025-02-24T000000.html" in local
    assert all((where / link).resolve().is_file() for link in local)
    index = seen((home.reports / "index.html").read_text())
    assert index.linked == ["runs/2025-02-24T000000.html"]


def test_a_report_on_the_past_knows_nothing_of_later_and_leaves_the_metrics_of_now(home: Home):
    report.write(home, LAST)
    now = (home.reports / "metrics.prom").read_text()
    early = report.write(home, FIRST)
    assert [one["as_of"] for one in early["cycles"]] == [FIRST.isoformat()]
    assert len(early["decisions"]) == 1
    assert early["champion"]["age_days"] == 0
    assert (home.reports / "metrics.prom").read_text() == now
    assert len(seen((home.reports / "index.html").read_text()).linked) == 2


def test_writing_it_again_changes_no_byte(home: Home):
    report.write(home, LAST)
    before = {file: file.read_bytes() for file in home.reports.rglob("*") if file.is_file()}
    report.write(home, LAST)
    assert {file: file.read_bytes() for file in home.reports.rglob("*") if file.is_file()} == before


def test_a_rollback_begins_a_reign_after_the_newest_cycle_not_at_the_old_one(home: Home):
    pointer = releases.pointer(home)
    later = {"as_of": (FIRST + timedelta(days=7)).isoformat(), "reasons": ["better"], "champion_before": 1, "champion_after": 2}
    releases.flip(home, pointer, version=2, digest="1" * 64, as_of=later["as_of"], key=None, body=later)
    back = {"as_of": FIRST.isoformat(), "reasons": ["asked for"], "champion_before": 2, "champion_after": 1}
    releases.flip(
        home, releases.pointer(home), version=1, digest="0" * 64, as_of=back["as_of"], key=None, body=back, kind=ledger.ROLLED_BACK
    )
    found = report.gather(home, LAST)
    assert found["champion"]["version"] == 1
    assert found["champion"]["age_days"] == 14
    assert found["cycles"][0]["champion"]["version"] == 1


def test_a_report_on_the_past_does_not_know_of_a_later_rollback_or_answer_to_an_older_cycle(home: Home):
    second = FIRST + timedelta(days=7)
    flip = {"as_of": second.isoformat(), "reasons": ["better"], "champion_before": 1, "champion_after": 2}
    body = {"as_of": LAST.isoformat(), "reasons": ["best"], "champion_before": 1, "champion_after": 3}
    releases.flip(home, releases.pointer(home), version=3, digest="3" * 64, as_of=body["as_of"], key=None, body=body)
    before = report.gather(home, second)
    assert before["champion"]["version"] == 1
    back = {**flip, "champion_before": 3}
    releases.flip(
        home, releases.pointer(home), version=2, digest="2" * 64, as_of=back["as_of"], key=None, body=back, kind=ledger.ROLLED_BACK
    )
    ledger.record(home, ledger.REJECTED, None, {"as_of": FIRST.isoformat(), "challenger": 4, "champion_before": 2, "author": "ann"})
    after = report.gather(home, second)
    assert (after["decisions"], after["counts"]) == (before["decisions"], before["counts"])
    assert after["champion"] == {**before["champion"], "serves_now": False}
    assert [one["champion"] for one in after["cycles"]] == [one["champion"] for one in before["cycles"]]
    now = report.gather(home, LAST)
    assert now["champion"]["version"] == 2
    assert [one["kind"] for one in now["decisions"]][-2:] == [ledger.ROLLED_BACK, ledger.REJECTED]


def test_a_folder_that_is_no_cycle_is_passed_over(home: Home):
    before = report.moments(home)
    for stray in (".DS_Store", "notes", "2025-02-10T000000.bak", "9999-99-99T999999x"):
        (home.reports / "cycles" / stray).mkdir()
    assert report.moments(home) == before


def test_the_verb_prints_json_and_refuses_a_day_before_any_cycle(home: Home):
    done = CliRunner().invoke(app, ["report", "--home", str(home.root), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["as_of"] == LAST.isoformat()
    refused = CliRunner().invoke(app, ["report", "--home", str(home.root), "--as-of", "2024-01-01"])
    assert "2025-02-10 or later" in str(refused.exception)


def test_a_line_breaks_where_nothing_was_measured_and_an_axis_has_round_ticks():
    when = [FIRST + timedelta(days=number) for number in range(4)]
    points: Any = [(moment, value, None, None) for moment, value in zip(when, [0.1, None, 0.3, 0.27], strict=True)]
    drawn = ET.fromstring(line_plot.svg("p", "a plot", [Series("one", points)]))
    path = next(part for part in drawn.iter("path") if part.get("class") == "line").get("d") or ""
    assert (path.count("M"), path.count("L")) == (2, 1)
    assert [part.text for part in drawn.iter("text")][:4] == ["0", "0.1", "0.2", "0.3"]
    assert "nothing was measured" in line_plot.svg("p", "a plot", [Series("none", [])])
