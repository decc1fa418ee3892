"""Another policy valued from the impression log, at the command line: what it would have earned, or why nothing can be told."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pipelines import lake, tables
from pipelines.cli.entry import app
from pipelines.config import Home
from pipelines.errors import NotEnoughData, StateError
from pipelines.serving import valuing
from pipelines.window import Window, utc

DAY = Window(utc("2025-03-03"), utc("2025-03-04"))
RATE = {"old": 0.2, "new": 0.05}
DRAWN = 0.25


def live(home: Home, requests: int = 3000) -> list[dict[str, object]]:
    """Let the second of two places hold a drawn item a quarter of the time, which is clicked less; return what was shown."""
    rng, shown, events = np.random.default_rng(0), [], []
    for number in range(requests):
        moment, who = DAY.start + timedelta(seconds=20 * number), {"request_id": f"r{number}", "user_id": f"u{number % 1000}"}
        drawn = rng.random() < DRAWN
        for rank, kind in ((1, "old"), (2, "new" if drawn else "old")):
            item = f"{kind}{rank}-{number % 7}"
            propensity = 1.0 if rank == 1 else DRAWN if drawn else 1 - DRAWN
            sources = ["exploration"] if kind == "new" else ["als"]
            shown.append(who | {"item_id": item, "rank": rank, "shown_at": moment, "propensity": propensity, "sources": sources, "surface": "home", "rung": "full"})  # fmt: skip
            if rng.random() < RATE[kind]:
                events.append(who | {"event_id": f"e{number}-{rank}", "item_id": item, "event_type": "view", "event_at": moment, "received_at": moment, "quantity": 1})  # fmt: skip
    rows = [*shown, shown[0] | {"request_id": "cached", "rung": "cached"}, shown[0] | {"request_id": "unknown", "propensity": None}]
    file = home.lake / "impressions" / "shown_date=2025-03-03" / "impressions.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, tables.IMPRESSIONS), file)
    lake.land_tables(home, events=pa.Table.from_pylist(events, tables.EVENTS))
    return shown


def valued(home: Home, *arguments: str) -> tuple[int, dict]:
    days = ["--from", "2025-03-03", "--to", "2025-03-04", "--home", str(home.root)]
    done = CliRunner().invoke(app, ["experiment", "off-policy", "--json", *days, *arguments])
    return done.exit_code, json.loads(done.stdout) if done.stdout else {}


def test_the_lists_without_exploration_would_have_earned_what_is_not_drawn_earns(home: Home):
    live(home)
    code, found = valued(home)
    assert code == 0
    assert found["n"] == 6000
    assert found["left_out"] == {"propensity not known": 2, "the policy does not speak of its place": 0}
    assert found["mean_weight"] == pytest.approx(1, abs=0.02)
    for name in ("ips", "snips", "dr"):
        assert found[name]["lower"] < RATE["old"] < found[name]["upper"]
        assert found[name]["value"] > found["logged"]["value"]
    assert found["effective"] == pytest.approx(6000 / (1 / 2 + 1 / 2 / (1 - DRAWN)), rel=0.02)


def test_a_policy_of_a_file_is_valued_where_the_log_could_have_shown_it(home: Home, tmp_path: Path):
    """It draws twice as often: half the time the new item, half the other."""
    wanted = []
    for row in live(home):
        if row["rank"] == 2:
            tail = str(row["item_id"])[3:]
            wanted += [
                {"request_id": row["request_id"], "rank": 2, "item_id": f"{kind}{tail}", "probability": 0.5} for kind in ("old", "new")
            ]
    file = tmp_path / "policy.parquet"
    pq.write_table(pa.Table.from_pylist(wanted), file)
    code, found = valued(home, "--policy", str(file))
    assert (code, found["n"]) == (0, 3000)
    assert found["left_out"] == {"propensity not known": 2, "the policy does not speak of its place": 3000}
    truth = (RATE["old"] + RATE["new"]) / 2
    for name in ("ips", "snips", "dr"):
        assert found[name]["lower"] < truth < found[name]["upper"]
    (tmp_path / "policy.csv").write_text(
        "request_id,rank,item_id,probability\n" + "".join(f"{one['request_id']},2,{one['item_id']},0.5\n" for one in wanted)
    )
    assert valued(home, "--policy", str(tmp_path / "policy.csv"))[1] == found


def test_what_was_never_drawn_says_nothing_of_another_order(home: Home, tmp_path: Path):
    file = tmp_path / "swapped.csv"
    places = "".join(f"{row['request_id']},1,{row['item_id']},1\n" for row in live(home) if row["rank"] == 2)
    file.write_text("request_id,rank,item_id,probability\n" + places)
    code, found = valued(home, "--policy", str(file))
    assert code == 1
    assert found["refused"][0].startswith("effective sample size 0 of 3,000 rows")
    assert found["ips"]["value"] is None
    days = ["--from", "2025-03-03", "--to", "2025-03-04", "--home", str(home.root), "--policy", str(file)]
    done = CliRunner().invoke(app, ["experiment", "off-policy", *days])
    assert done.exit_code == 1
    assert "refused: effective sample size 0" in done.stdout


@pytest.mark.parametrize("rows", ["r0,2,a,1.5\n", "r0,2,a,0.6\nr0,2,b,0.6\n", "r0,2,a,0.1\nr0,2,a,0.1\n", "r0,2,,1\n"])
def test_what_is_no_policy_is_refused(home: Home, tmp_path: Path, rows: str):
    live(home, 10)
    file = tmp_path / "policy.csv"
    file.write_text("request_id,rank,item_id,probability\n" + rows)
    with pytest.raises(StateError, match="at most 1 in all at a place"):
        valuing.read(home, DAY, policy=file)
    file.write_text("request,place\nr0,2\n")
    with pytest.raises(StateError, match="request_id, rank, item_id, probability"):
        valuing.read(home, DAY, policy=file)


def test_nothing_that_can_be_used_says_why(home: Home):
    live(home, 10)
    with pytest.raises(NotEnoughData, match="none of 0 impressions of surface similar"):
        valuing.read(home, DAY, policy=None, surface="similar")
    with pytest.raises(StateError, match="clicks, purchases, revenue"):
        valuing.read(home, DAY, policy=None, reward="joy")
