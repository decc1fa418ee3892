"""Which sources could go: redundant ones one at a time, never what something else stands on, and one line of settings changes."""

import json
import tomllib

import numpy as np
import pytest
from test_attribution import labels, source
from test_fitting import AS_OF, fit_all, run_home  # noqa: F401 - a fixture
from typer.testing import CliRunner

from pipelines import config
from pipelines.cli import app
from pipelines.errors import StateError
from pipelines.retrieval import attribution, pruning
from pipelines.retrieval.merging import Recipe
from pipelines.retrieval.pruning import Advice, Judged
from pipelines.window import utc


def world(n_users=300, seed=0):
    """Return a window in which `a` and `twin` know the first thing a user wants, `b` the second, and `noise` nothing."""
    rng = np.random.default_rng(seed)
    orders = np.array([rng.permutation(10) for _ in range(n_users)])
    lists = {"a": source(*orders[:, [0, 4]]), "twin": source(*orders[:, [0, 5]])}
    lists |= {"b": source(*orders[:, [1, 6]]), "noise": source(*orders[:, [7, 8]])}
    return Judged(lists, labels(*orders[:, :2]), Recipe(), 4)


def anyone(name, left):
    return True


def test_of_two_sources_that_find_the_same_one_goes_and_the_other_then_stays():
    gone = pruning.eliminate([world()], ["a", "twin", "b", "noise"], 0.01, 7, may_go=anyone)
    assert "noise" in gone
    assert len(gone.keys() & {"a", "twin"}) == 1
    assert "b" not in gone
    assert all(row["lost_upper"] < 0.01 for row in gone.values())


def test_losses_add_up_against_the_whole_line_up_and_not_step_by_step():
    """Each of four sources finds a tenth of the users' items: each alone may go at a minimum of .15, two together may not."""
    n = 1000
    lists = {name: source(*([number] if user % 10 == number else [9] for user in range(n))) for number, name in enumerate("abcd")}
    truth = labels(*([user % 10] if user % 10 < 4 else [8] for user in range(n)))
    gone = pruning.eliminate([Judged(lists, truth, Recipe(), 5)], list("abcd"), 0.15, 7, may_go=anyone)
    assert list(gone) == ["d"], "of equals the last in the settings"
    assert gone["d"]["lost"] == pytest.approx(0.1)


def test_several_runs_are_judged_together():
    empty = world(5)
    assert pruning.eliminate([empty], ["a", "twin", "b", "noise"], 1e-9, 7, may_go=anyone).keys() <= {"noise", "a", "twin"}
    gone = pruning.eliminate([world(200, 1), world(200, 2)], ["a", "b", "noise"], 0.01, 7, may_go=anyone)
    assert list(gone) == ["noise"]
    assert gone["noise"]["users"] == 400


def test_what_may_not_go_stays_and_something_always_does():
    held = pruning.eliminate([world()], ["a", "noise"], 0.01, 7, may_go=lambda name, left: name != "noise")
    assert held == {}
    assert len(pruning.eliminate([world()], ["a", "twin"], 2.0, 7, may_go=anyone)) == 1


def advice(keep=("popular", "ease")):
    costs = {"lost": 0.0, "lost_upper": 0.0, "fit_seconds": 1.0, "retrieve_ms_per_user": None, "state_mb": 2.0}
    return Advice(
        (AS_OF,), {"als": costs}, {name: {"why": "it finds something", "adds": 0.1, "adds_at_most": 0.2} for name in keep}, 0.5, 0.5
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[retrieval]\nk_blend = 90\n",
        '[gate]\nmin_users = 3\n[retrieval]\nsources = ["popular", "ease", "als"] # ours\nk_blend = 90\n[ranking]\nseed = 1\n',
        '[retrieval]\nk_blend = 90\nsources = [\n  "popular",\n  "ease",\n  "als",\n]\n[retrieval.parameters.als]\nalpha = 2\n',
        "# the shop's\n[training]\nseed = 3",
    ],
)
def test_writing_changes_the_sources_and_nothing_else(home, text):
    home.root.mkdir(parents=True)
    if text:
        (home.root / "reloop.toml").write_text(text)
    file = pruning.write(home, advice())
    before, after = tomllib.loads(text), tomllib.loads(file.read_text())
    assert after.pop("retrieval")["sources"] == ["popular", "ease"]
    before.pop("retrieval", None)
    assert after == before
    assert all(line in file.read_text() for line in text.splitlines() if "k_blend" in line or "#" in line.split("sources")[0])
    pruning.write(home, advice())
    assert tomllib.loads(file.read_text())["retrieval"]["sources"] == ["popular", "ease"]


@pytest.mark.parametrize("text", ['retrieval = { sources = ["als"] }\n', '[retrieval]\nblend = "rrf"\nweights = { als = 2.0 }\n'])
def test_what_cannot_be_edited_by_rule_is_left_alone_with_the_line_to_write(home, text):
    home.root.mkdir(parents=True)
    file = home.root / "reloop.toml"
    file.write_text(text)
    with pytest.raises(StateError, match=r'by hand: sources = \["popular", "ease"\]'):
        pruning.write(home, advice())
    assert file.read_text() == text


def test_a_run_is_judged_as_it_was_published(run_home):  # noqa: F811
    with pytest.raises(StateError, match="reloop train"):
        pruning.advise(run_home)
    fit_all(run_home)
    table = {row["source"]: row for row in attribution.load(run_home, AS_OF)}
    assert table["repeat"]["state_mb"] > 0
    assert table["item_knn"]["fit_seconds"] >= 0
    assert table["popular"]["users_served"] == table["popular"]["users"]
    said = pruning.advise(run_home)
    assert {*said.drop, *said.keep} == set(table)
    assert said.keep["popular"]["why"] == "the gate compares releases with it"
    assert said.runs == (AS_OF,)
    assert said.recall >= said.recall_after - 0.01
    shown = CliRunner().invoke(app, ["retrieval", "sources", "--home", str(run_home.root), "--json"])
    assert shown.exit_code == 0
    printed = json.loads(shown.output)["sources"]
    assert printed["item_knn"]["contribution"] == table["item_knn"]["contribution"]
    assert "item_knn" in CliRunner().invoke(app, ["retrieval", "sources", "--home", str(run_home.root)]).output
    pruned = CliRunner().invoke(app, ["retrieval", "prune", "--home", str(run_home.root), "--json"])
    assert pruned.exit_code == (0 if said.drop else 1)
    assert json.loads(pruned.output)["setting"] == said.setting()
    assert all(name in attribution.text(run_home, AS_OF) for name in table)


def test_the_run_of_a_moment_is_one_rule_and_no_more_tables_are_read_than_are_judged_on(home, monkeypatch):
    """Five weekly runs; the third lacks a source: from the fifth two runs go back that far, from the second two, from the third none."""
    days = [utc(f"2025-01-{day:02}") for day in (1, 8, 15, 22, 29)]
    read = []
    monkeypatch.setattr(attribution, "runs", lambda home: days)

    def load(home, run):
        read.append(run)
        return [{"source": name} for name in (("a",) if run == days[2] else ("a", "b"))]

    monkeypatch.setattr(attribution, "load", load)
    assert list(attribution.up_to(home, None, 1, ["a", "b"])) == days[4:]
    assert len(read) <= 2
    assert list(attribution.up_to(home, None, 5, ["a", "b"])) == days[3:]
    assert list(attribution.up_to(home, days[1], 5, ["a", "b"])) == days[:2]
    assert list(attribution.up_to(home, None, 3, ["a"])) == days[2:]
    with pytest.raises(StateError, match=r"2025-01-15: no table of \['b'\]"):
        attribution.up_to(home, days[2], 5, ["a", "b"])
    with pytest.raises(StateError, match="2025-01-16"):
        attribution.up_to(home, utc("2025-01-16"), 5, ["a"])


def test_pruning_changes_the_settings_only_when_told_to(run_home):  # noqa: F811
    """Nothing has to be found at a minimum of 2, so all goes that may: the sources the gate compares with stay."""
    file = run_home.root / "reloop.toml"
    file.write_text(file.read_text().replace("[training]", "min_contribution = 2.0\n[training]"))
    fit_all(run_home)
    before = file.read_text()
    asked = ["retrieval", "prune", "--home", str(run_home.root)]
    shown = CliRunner().invoke(app, asked)
    assert shown.exit_code == 0
    assert 'sources = ["popular", "item_knn"]' in shown.output
    assert file.read_text() == before
    assert CliRunner().invoke(app, [*asked, "--write"]).exit_code == 0
    assert config.load(run_home).retrieval.sources == ("popular", "item_knn")
