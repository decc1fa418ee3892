"""The board in a shop whose right order can be worked out on paper, and what may not move it."""

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest

from pipelines import columns as c
from pipelines import config, lake, tables
from pipelines.config import Home
from pipelines.datasets import universe
from pipelines.datasets.split import JUDGE
from pipelines.errors import NotEnoughData, ReloopError, StateError
from pipelines.retrieval import extras, lineup
from pipelines.retrieval.leaderboard import board, data_sets, grids, trial
from pipelines.retrieval.leaderboard.board import Plan
from pipelines.window import utc

START, AS_OF = utc("2025-01-06"), utc("2025-02-03")  # four weeks: two to learn from, one to choose on, one to report
CLUBS, MEMBERS = 6, 4
LOG = np.log2


def events(rows, name="e"):
    """Return views, each (user, item, moment, received)."""
    columns = {field: [None] * len(rows) for field in tables.EVENTS.names}
    columns[c.EVENT_ID] = [f"{name}{n:05}" for n in range(len(rows))]
    columns[c.USER_ID], columns[c.ITEM_ID], columns[c.EVENT_AT], columns[c.RECEIVED_AT] = map(list, zip(*rows, strict=True))
    columns[c.EVENT_TYPE] = [c.VIEW] * len(rows)
    return pa.table(columns, schema=tables.EVENTS)


def clubs():
    """Return a shop in which every member of a club looks at the club's own three items, once on every day."""
    rows = []
    for day in range(28):
        for user in range(CLUBS * MEMBERS):
            for n in range(3):
                at = START + timedelta(days=day, hours=9, minutes=n)
                rows.append((f"u{user:02}", f"i{user // MEMBERS * 3 + n:02}", at, at))
    return events(rows)


@pytest.fixture
def shop(home: Home) -> Home:
    home.root.mkdir(parents=True)
    lake.land_tables(home, events=clubs())
    return home


def made(home, *sources, **knobs):
    return board.make(home, AS_OF, Plan(sources, **knobs), home.root / "tmp" / "board")


def of(found, source):
    return next(line for line in found.lines if line.source == source)


def test_the_board_has_the_order_and_the_figures_of_paper(shop):
    """All items are looked at equally often, so popularity lists i00 to i09 for everyone; the club's items are all that count."""
    found = made(shop, "popular", "repeat", "item_knn")
    assert [line.source for line in found.lines] == ["item_knn", "repeat", "popular"], "equals stand in the order of their names"
    ideal = 1 / LOG(2) + 1 / LOG(3) + 1 / LOG(4)
    of_club = [
        1.0,
        (1 / LOG(5) + 1 / LOG(6) + 1 / LOG(7)) / ideal,
        (1 / LOG(8) + 1 / LOG(9) + 1 / LOG(10)) / ideal,
        1 / LOG(11) / ideal,
        0,
        0,
    ]
    popular = of(found, "popular")
    assert popular.per_user == pytest.approx(np.repeat(of_club, MEMBERS))
    assert popular.ndcg.mean == pytest.approx(np.mean(of_club))
    assert (popular.coverage_at_10, popular.recall_at_50) == (pytest.approx(10 / 18), 1.0)
    repeat = of(found, "repeat")
    assert (repeat.ndcg.mean, repeat.ndcg.lower, repeat.ndcg.upper, repeat.coverage_at_10) == (1, 1, 1, 1)
    assert repeat.above_popular.mean == pytest.approx(1 - np.mean(of_club))
    assert repeat.above_popular.lower > 0
    assert of(found, "item_knn").below_best is None, "the best has none above it"
    assert repeat.below_best.mean == 0
    assert (found.test[1:], found.n_items, found.n_events) == ((24, 72), 18, 21 * 72)
    assert popular.slices == {"cold_users": (None, 0), "light_users": (None, 0), "heavy_users": (pytest.approx(np.mean(of_club)), 24)}


def test_an_interval_is_that_of_resampling_the_users(shop):
    """Drawn by hand: the mean of as many users, drawn with replacement, again and again."""
    popular = of(made(shop, "popular"), "popular")
    rng = np.random.default_rng(11)
    means = [np.mean([popular.per_user[rng.integers(24)] for _ in range(24)]) for _ in range(4000)]
    lower, upper = np.quantile(means, [0.025, 0.975])
    assert popular.ndcg.lower == pytest.approx(lower, abs=0.15 * (upper - lower))
    assert popular.ndcg.upper == pytest.approx(upper, abs=0.15 * (upper - lower))


def test_what_cannot_be_measured_costs_its_line_and_says_why(shop):
    """A model that refuses its data, one with a defect, and one whose data are not there."""
    (shop.root / "reloop.toml").write_text("[retrieval.parameters]\nease = {regularization = 1e-300}\nals = {regularization = 1e-300}\n")
    found = made(shop, "ease", "als", "popular", "bought_together")
    status = {line.source: line.status for line in found.lines}
    assert status == {"popular": "ok", "ease": "failed", "als": "failed", "bought_together": "skipped"}, found.lines
    assert of(found, "ease").reason.startswith("ease: regularization 1e-300")
    assert "exit code 1: " in of(found, "als").reason
    assert "Error" in of(found, "als").reason
    assert of(found, "bought_together").reason == "no event is a purchase"
    assert set(found.lists[JUDGE]) == {"popular"}


def test_a_training_without_end_is_given_up(shop):
    (shop.root / "reloop.toml").write_text("[retrieval.parameters]\nals = {n_epochs = 1000000000}\n")
    (line,) = made(shop, "als", timeout=2.0).lines
    assert (line.status, line.reason) == ("failed", "killed after 2 s")


def test_what_happened_or_was_received_after_the_cutoff_moves_no_list(shop):
    sources = ("popular", "item_knn", "sequence_rules", "repeat", "trending")
    before = made(shop, *sources, validate=True)
    cutoff = before.test[0].cutoff
    rng = np.random.default_rng(5)
    late = []
    for n in range(400):
        at = cutoff + timedelta(hours=int(rng.integers(-48, 100)))
        late.append((f"u{rng.integers(24):02}", f"i{rng.integers(18):02}", at, max(at, cutoff) + timedelta(minutes=n)))
    assert any(at < cutoff for _, _, at, _ in late), "some happened before the cutoff and were received after it"
    lake.land_tables(shop, events=events(late, "late"), batch_id="late")
    after = made(shop, *sources, validate=True)
    assert len(after.truth[JUDGE].item) > len(before.truth[JUDGE].item), "what happened is truth all the same"
    for fold in (before.validation[0].name, JUDGE):
        for source in sources:
            old, new = before.lists[fold][source].found, after.lists[fold][source].found
            assert (old.item == new.item).all()
            assert (old.score == new.score).all()


def test_knobs_are_chosen_on_the_validation_window_and_the_test_window_has_no_say(shop, monkeypatch):
    """In the validation week all look at the items of last week; in the test week at those of long ago, which favours another knob."""
    changed = []
    for user in range(CLUBS * MEMBERS):
        for day in range(7, 12):  # what is old and plentiful in the test week
            changed += [(f"u{user:02}", "i17", START + timedelta(days=day, hours=3, minutes=n)) for n in range(9)]
        for day in range(12, 14):
            changed += [(f"u{user:02}", "i16", START + timedelta(days=day, hours=4, minutes=n)) for n in range(9)]
        changed += [(f"u{user:02}", "i16", START + timedelta(days=day, hours=5, minutes=n)) for day in range(14, 21) for n in range(3)]
        changed += [(f"u{user:02}", "i17", START + timedelta(days=day, hours=5, minutes=n)) for day in range(21, 28) for n in range(3)]
    lake.land_tables(shop, events=events([(*row, row[2]) for row in changed], "changed"), batch_id="changed")
    monkeypatch.setitem(grids.GRIDS, "popular", [{}, {"half_life_days": 0.5}])
    tuned = of(made(shop, "popular", tune=True), "popular")
    assert [knobs for knobs, _ in tuned.tried] == [{}, {"half_life_days": 0.5}]
    assert tuned.tried[1][1] > tuned.tried[0][1]
    assert tuned.knobs == {"half_life_days": 0.5}
    assert tuned.ndcg.mean < of(made(shop, "popular"), "popular").ndcg.mean, "the default would have been better in the test week"


def test_a_grid_begins_with_the_default_and_names_knobs_that_there_are():
    assert len(grids.GRIDS) > 10
    for source, knobs in grids.GRIDS.items():
        assert knobs[0] == {}
        assert [lineup.make(source, some) for some in knobs]


def test_costs_are_of_the_process_that_did_the_work(shop):
    line = of(made(shop, "ease"), "ease")
    assert line.costs.fit_seconds > 0
    assert line.costs.fit_cpu_seconds > 0
    assert 0 < line.costs.peak_mb < 500
    assert line.ndcg_per_second == pytest.approx(line.ndcg.mean / max(line.costs.fit_cpu_seconds, board.SHORTEST_FIT))
    assert not list((shop.root / "tmp" / "board").rglob("*.npz")), "a trial's files go once they are read"


def test_a_source_is_told_apart_that_lacks_its_data_or_its_extra(shop, monkeypatch):
    known = universe.ensure(shop, AS_OF).interactions(AS_OF, config.load(shop).training)
    assert trial.unfed(lineup.SOURCES["viewed_together"], known) is None
    expected = {
        "biased_mf": "no event is a rating",
        "bought_together": "no event is a purchase",
        "content": "no item has a title, category, brand or attributes",
        "popular_by_segment": "no user has a country",
    }
    for source, reason in expected.items():
        assert trial.unfed(lineup.SOURCES[source], known) == reason
    named = known.items.set_column(known.items.column_names.index(c.TITLE), c.TITLE, pa.array(["lamp"] * 18))
    assert trial.unfed(lineup.SOURCES["content"], replace(known, items=named)) is None
    assert "none is set" in trial.unfed(lineup.SOURCES["text_embedding"], known)
    monkeypatch.setattr(extras, "find_spec", lambda _: None)
    for source, extra in (("sasrec", "neural"), ("spark_als", "spark")):
        assert f"pip install 'reloop[{extra}]'" in trial.unfed(lineup.SOURCES[source], known)


def test_only_what_trains_for_long_has_a_budget():
    assert trial.within(lineup.SOURCES["sasrec"], 30.0) == {"seconds": 30.0}
    assert trial.within(lineup.SOURCES["sasrec"], 0.0) == trial.within(lineup.SOURCES["ease"], 30.0) == {}


def test_unknown_names_and_short_histories_are_refused(shop):
    with pytest.raises(StateError, match="unknown"):
        made(shop, "popularr")
    with pytest.raises(NotEnoughData):
        board.make(shop, START + timedelta(days=10), Plan(("popular",)), shop.root / "tmp" / "board")
    with pytest.raises(ReloopError, match="simulated-taste"):
        data_sets.prepare(shop.root, "amazon", None)
    with pytest.raises(ReloopError, match="--path"):
        data_sets.prepare(shop.root, "retailrocket", None)
    with pytest.raises(ReloopError, match="reloop ingest"):
        data_sets.own(Home(shop.root / "empty"), None)
    assert data_sets.own(shop, None) == (shop, AS_OF)
