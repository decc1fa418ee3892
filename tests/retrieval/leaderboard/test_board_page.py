"""What is written of a board, and how a line-up grows."""

import csv
import io
import json
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest

from pipelines.datasets.labels import Labels
from pipelines.datasets.split import JUDGE, Fold
from pipelines.evaluation import paired
from pipelines.retrieval.leaderboard import board, page, selection
from pipelines.retrieval.leaderboard.board import Board, Line
from pipelines.retrieval.leaderboard.trial import Costs, Run
from pipelines.retrieval.protocol import Candidates
from pipelines.window import Window, utc

USERS = 40
FOLDS = [
    Fold(name, utc(start), Window.parse(start, end))
    for name, start, end in (("rank_1", "2025-02-03", "2025-02-10"), (JUDGE, "2025-02-10", "2025-02-17"))
]


def line(source, values, seconds, **others):
    values = np.asarray(values, dtype=float)
    costs = Costs(seconds, seconds, 0.1, 12.0)
    return Line(
        source,
        "ok",
        ndcg=paired.interval(values),
        per_user=values,
        recall_at_50=0.5,
        coverage_at_10=0.25,
        costs=costs,
        ms_per_user=0.2,
        **others,
    )


@pytest.fixture
def made() -> Board:
    rng = np.random.default_rng(0)
    lines = [
        line("popular", rng.uniform(0, 0.2, USERS), 0.001),
        line(
            "als", rng.uniform(0.2, 0.4, USERS), 2.0, knobs={"regularization": 100.0}, tried=(({}, 0.1), ({"regularization": 100.0}, 0.2))
        ),
        Line("sasrec", "skipped", "jax is not installed (the extra `neural`)"),
        Line("ease", "failed", "died of SIGKILL"),
    ]
    return Board(board.ranked(lines), (FOLDS[0], 30, 60), (FOLDS[1], USERS, 80), 100, 5000, {}, {})


def test_a_page_is_the_board_in_json_csv_and_a_plot_and_the_same_board_is_the_same_bytes(made, tmp_path):
    figures = page.figures("planted", made, {"as_of": "2025-02-17"})
    files = page.write(tmp_path, figures)
    assert [file.name for file in files] == [f"retrieval-planted.{ending}" for ending in ("json", "csv", "svg")]
    assert json.loads(files[0].read_text()) == figures
    rows = list(csv.DictReader(io.StringIO(files[1].read_text())))
    assert [row["source"] for row in rows] == ["als", "popular", "ease", "sasrec"]
    assert json.loads(rows[0]["knobs"]) == {"regularization": 100.0}
    assert float(rows[0]["above_popular_lower"]) > 0
    assert rows[2]["ndcg_at_10"] == rows[2]["fit_seconds"] == "", "unmeasured is not zero"
    drawn = " ".join(ET.fromstring(files[2].read_text()).itertext())
    assert "als" in drawn
    assert "processor seconds of training" in drawn
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in page.write(tmp_path / "again", figures)]


def test_a_plot_needs_no_colour(made):
    text = page.plot(page.figures("planted", made, {}))
    hues = {
        word.strip(";\"' ")
        for word in text.replace(":", " ").split()
        if word.strip(";\"' ").startswith("#") and len(word.strip(";\"' ")) == 7
    }
    assert hues
    assert all(hue[1:3] == hue[3:5] == hue[5:7] for hue in hues)


def test_a_table_for_a_document_says_what_was_left_out_and_why(made):
    text = page.markdown(page.figures("planted", made, {}))
    assert text.count("\n| ") == 2
    assert "- ease: failed: died of SIGKILL" in text
    assert "- sasrec: skipped: jax is not installed" in text
    assert "*" in text.splitlines()[2], "the difference to popular is sure"


def test_ranking_puts_failures_after_measurements_and_before_what_was_skipped(made):
    assert [(found.source, found.status) for found in made.lines][-2:] == [("ease", "failed"), ("sasrec", "skipped")]
    nobody = replace(made.lines[0], source="nobody", ndcg=paired.interval(np.full(3, np.nan)), per_user=np.full(USERS, np.nan))
    assert [found.source for found in board.ranked([nobody, *made.lines])][:3] == ["als", "popular", "nobody"]


def lists(found, seconds):
    """Return a run that proposes to each user one item; -1 is none."""
    item = np.asarray(found, dtype=np.int32)[:, None]
    return Run({}, Costs(seconds, seconds, 0.0, 0.0), Candidates(item, np.where(item < 0, -np.inf, 1).astype(np.float32)))


def test_a_line_up_grows_by_what_a_source_adds_for_its_seconds_and_ends_when_nothing_is_added():
    """`even` and `odd` each serve half of the users; `dear` serves all, for a thousand seconds; `copy` adds nothing to `even`."""
    user = np.arange(USERS)
    proposed = {
        "even": lists(np.where(user % 2 == 0, 0, -1), 1.0),
        "odd": lists(np.where(user % 2 == 1, 0, -1), 2.0),
        "copy": lists(np.where(user % 2 == 0, 0, -1), 5.0),
        "dear": lists(np.zeros(USERS), 1000.0),
        "wrong": lists(np.full(USERS, 7), 0.0),
    }
    truth = Labels(
        np.array([f"u{n:02}" for n in user]),
        np.array([f"i{n}" for n in range(8)]),
        np.arange(USERS + 1),
        np.zeros(USERS, np.int32),
        np.ones(USERS, np.float32),
    )
    made = Board(
        (), (FOLDS[0], USERS, USERS), (FOLDS[1], USERS, USERS), 8, 0, {"rank_1": proposed, JUDGE: proposed}, {"rank_1": truth, JUDGE: truth}
    )
    for by in selection.QUALITIES:
        steps = selection.forward(made, by)
        assert [found.sources for _, found in steps] == [("even",), ("even", "odd")]
        assert [found.quality[by] for _, found in steps] == [0.5, 1.0]
        assert steps[-1][1].seconds == 1.0 + 2.0 + 2 * selection.TASK_SECONDS
    assert selection.compared(made, ("dear", "not fitted")).quality["ndcg_at_10"] == 1.0
    assert selection.compared(made, ("not fitted",)) is None
    grown = page.line_ups(selection.forward(made, "ndcg_at_10"))
    assert [step["sources"] for step in grown] == [["even"], ["even", "odd"]]
    assert [grid.row_count for grid in page.choices({"line_ups": {"ndcg_at_10": grown}, "blends": {"one": grown[0]}})] == [2, 1]
    apart = page.blend(selection.compared(made, ("even",)), selection.compared(made, ("even", "odd")))
    assert (apart["ndcg_at_10_more"], apart["ndcg_at_10_more_upper"] < 0) == (-0.5, True)
    table = page.blends_markdown({"blends": {"both": grown[1], "half": apart}})
    assert "| half | 0.5000 | -.5000* | 0.5000 | -.5000* | 2.0 | even |" in table
