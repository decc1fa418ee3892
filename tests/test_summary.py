import io
import json
from datetime import UTC, datetime

import pytest
from rich.console import Console

from pipelines import cycle, summary
from pipelines.config import Home

AS_OF = datetime(2025, 3, 3, tzinfo=UTC)


def _record(home: Home, stage: str, key: str | None = None, **fields):
    with cycle.stage(home, AS_OF, stage, key) as record:
        record.update(fields)


@pytest.fixture
def finished(home: Home) -> Home:
    """Return a state folder whose stages all recorded one cycle with figures that can be checked by eye."""
    for batch, read in (("a", 100), ("b", 50)):
        rows = {"read": read, "accepted": read - 10, "quarantined": 8, "duplicates": 2}
        value = dict.fromkeys(rows, 1.005)
        _record(home, "ingest", batch, source="simulated", rows=rows, reasons={"missing user_id": 8}, value=value)
    _record(home, "features", features={"user_daily": 20})
    _record(home, "materialize", online={"user_daily": 20})
    for source, ndcg in (("popular", 0.1), ("ease", 0.2)):
        _record(home, "retrieval", source, ndcg_at_10=ndcg, recall_at_50=0.4)
    _record(home, "blend", ndcg_at_10=0.21, recall_at_50=0.5, ceiling=0.6)
    _record(home, "training_set", training_rows=1234)
    _record(
        home, "ranking", ndcg_at_10=0.25, lower=0.24, upper=0.26, n_users=20, best_single="ease", difference=0.05, difference_lower=0.03
    )
    _record(home, "gate", verdict="promote", champion_before=None, champion_after="1", reasons=["first release beats popularity"])
    _record(home, "drift", verdict="no drift", features={"views_7d": {"psi": 0.01, "threshold": 0.2}}, reasons=["no feature above"])
    return home


def test_the_fates_of_the_rows_add_up_over_the_batches(finished: Home):
    rows = summary.figures(finished, AS_OF)["rows"]
    assert rows == {"read": 150, "accepted": 130, "quarantined": 16, "duplicates": 4}
    assert summary.figures(finished, AS_OF)["reasons"] == {"missing user_id": 16}


def test_the_figures_have_the_promised_shape(finished: Home):
    figures = summary.figures(finished, AS_OF)
    promised = "as_of source rows features training_rows retrieval blend ranking gate drift seconds"
    assert set(promised.split()) <= set(figures)
    assert set(figures["retrieval"]["ease"]) == {"ndcg_at_10", "recall_at_50", "seconds"}
    assert figures["ranking"]["difference_lower"] == 0.03
    assert "total" in figures["seconds"]


def test_a_stage_that_did_not_run_is_null_and_not_zero(home: Home):
    figures = summary.figures(home, AS_OF)
    assert figures["ranking"] is None
    assert figures["training_rows"] is None


def test_the_json_of_a_run_is_a_list_with_an_entry_a_cycle(finished: Home, tmp_path):
    summary.write(finished, [summary.figures(finished, AS_OF)], tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == json.loads((finished.reports / "run.json").read_text())
    assert len(json.loads((tmp_path / "out.json").read_text())) == 1


def test_the_table_shows_what_a_reader_looks_for(finished: Home):
    console = Console(record=True, width=120, file=io.StringIO())
    summary.show(console, [summary.figures(finished, AS_OF)])
    text = console.export_text()
    for expected in (
        "0.2000 ease",
        "0.2500 [0.2400, 0.2600] on 20 users",
        "promote: champion none -> 1",
        "first release beats popularity",
        "no drift",
        "1,234",
    ):
        assert expected in text


def test_a_yes_that_waits_for_a_person_is_shown_as_waiting(finished: Home):
    said = {"verdict": "promote", "outcome": "waiting for review", "champion_before": None, "champion_after": None}
    _record(finished, "gate", **said, reasons=["better"])
    console = Console(record=True, width=120, file=io.StringIO())
    summary.show(console, [summary.figures(finished, AS_OF)])
    assert "promote, waiting for review: champion none -> none" in console.export_text()


def test_what_could_not_be_measured_is_shown_as_a_dash(finished: Home):
    unmeasured = dict.fromkeys(("ndcg_at_10", "lower", "upper", "difference", "difference_lower"))
    _record(finished, "ranking", **unmeasured, n_users=1, best_single="ease")
    console = Console(record=True, width=120, file=io.StringIO())
    summary.show(console, [summary.figures(finished, AS_OF)])
    assert "- over ease, at least -" in console.export_text()


def test_a_long_run_shows_every_cycle_on_a_line(finished: Home):
    console = Console(record=True, width=200, file=io.StringIO())
    summary.show(console, [summary.figures(finished, AS_OF)] * 6)
    assert console.export_text().count("2025-03-03") >= 6


def test_users_and_items_of_whom_little_is_known_are_told_beside_the_ranking(home: Home):
    lists = {
        "popular": {"ndcg_at_10": 0.1, "recall_at_50": 0.2, "difference": 0.0, "difference_lower": 0.0, "difference_upper": 0.0},
        "served": {"ndcg_at_10": 0.12, "recall_at_50": 0.2, "difference": 0.02, "difference_lower": 0.01, "difference_upper": 0.03},
    }
    cold = {"cold_users": {"n_users": 40, "baseline": "popular", "lists": lists}}
    _record(
        home, "ranking", ndcg_at_10=0.25, lower=0.2, upper=0.3, n_users=50, best_single="ease", difference=0, difference_lower=0, cold=cold
    )
    assert summary.figures(home, AS_OF)["cold"] == cold
    page = io.StringIO()
    summary.show(Console(file=page, width=140), [summary.figures(home, AS_OF)])
    assert "0.1200 served (+0.0200 over popular, at least +0.0100)" in page.getvalue()
    assert "on 40 users" in page.getvalue()


def test_without_an_evaluation_nothing_is_said_of_cold_slices(home: Home):
    assert summary.figures(home, AS_OF)["cold"] is None
