"""Promise 15: what was logged of a request is what training would have seen then, and whatever is not is named."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import served_shop
import swap_lab
from bundle_forge import forged
from trained_shop import SECOND
from typer.testing import CliRunner

from pipelines import config, lake, publish
from pipelines.cli.entry import app
from pipelines.config import Home
from pipelines.decision_policies import ImpressionPolicy
from pipelines.lake import segments
from pipelines.monitoring import report, skew
from pipelines.ranking import two_stage
from pipelines.registry import bundle_folder, choosing, releases
from pipelines.rerank_policies import RerankSettings
from pipelines.serving import assignment, collecting, engine
from pipelines.serving.experimenting import Experimenting
from pipelines.serving.journal import Journal
from pipelines.serving.knowledge import Knowledge
from pipelines.serving.request import Ask
from pipelines.serving_policies import DeadlinePolicy
from pipelines.window import DAY, Window

AT = SECOND + timedelta(minutes=5)
PATIENT = DeadlinePolicy(request_ms=60_000, store_ms=20_000, retrieve_by_ms=20_000, rank_by_ms=40_000)  # a busy machine is no skew
ALL = ImpressionPolicy(feature_share=1.0, skew_requests=6)
FEW = ImpressionPolicy(feature_share=1.0, skew_requests=3)
AS_OF = SECOND + DAY
SETTINGS = "\n[impressions]\nskew_requests = 3\n"


def ranked(trained: Home, home: Home) -> None:
    """Make a release that serves its ranker the champion: the small shop's own gate keeps to the blend."""

    def change(out: Path) -> None:
        shutil.rmtree(out / bundle_folder.MODEL_FOLDER)
        two_stage.of_run(trained, SECOND, serves=two_stage.RANKED).save(out / bundle_folder.MODEL_FOLDER)
        said = json.loads((out / bundle_folder.FACTS_FILE).read_text())
        publish.write_json(out / bundle_folder.FACTS_FILE, said | {"serves": two_stage.RANKED})

    now = releases.pointer(home)
    digest = forged(home, str(now.digest), change, honest_parts=True)
    swap_lab.remembered(home, digest)
    body = {"as_of": "2025-02-17", "champion_before": 1, "champion_after": 2, "challenger": 2, "reasons": ["it ranks"]}
    releases.flip(home, now, version=2, digest=digest, as_of="2025-02-17", key="2/0", body=body)


@pytest.fixture(scope="module")
def logged(trained: Home, served: Home, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Return the shop after twenty-eight people asked its release, with everything that was shown in the lake."""
    home = served_shop.copied(served, tmp_path_factory.mktemp("logged") / "var")
    with served_shop.environment(home):
        ranked(trained, home)
        with (home.root / "reloop.toml").open("a", encoding="utf-8") as file:
            file.write(SETTINGS)
        knowledge = Knowledge(home, config.load(home).serving.model_copy(update={"deadline": PATIENT}))
        serving = choosing.serving(home)
        assert serving is not None
        assert serving.model.serves == two_stage.RANKED
        answering, journal = engine.bound(knowledge, serving), Journal(home, ALL)
        with lake.connect(home) as db:
            people = [user for (user,) in db.execute("SELECT DISTINCT user_id FROM events ORDER BY md5(user_id) LIMIT 26").fetchall()]
        for number, user in enumerate([*people, "stranger", None]):
            said = {"device": ("mobile", None)[number % 2], "country": ("SE", None)[number // 2 % 2]}
            answer = answering.answer(Ask("home", f"r{number}", AT + timedelta(seconds=number), user_id=user, **said))
            assert answer.items, (user, answer.degraded)
            journal(answer)
        journal.close()
        assert journal.counts.answers == 28
        collecting.collect(home, AS_OF)
    return home


def changed(home: Home, to: Path, change: Callable[[dict], None]) -> Home:
    """Return the shop with every logged impression changed."""
    other = served_shop.copied(home, to)
    (file,) = (other.lake / "impressions").rglob("*.parquet")
    table = pq.read_table(file)
    rows = table.to_pylist()
    for row in rows:
        if row["feature_values"]:
            row["feature_values"] = dict(row["feature_values"])
            change(row)
            row["feature_values"] = list(row["feature_values"].items())
    file.unlink()  # a link to the file of the others
    publish.write_parquet(file, table.from_pylist(rows, table.schema))
    return other


def measured(home: Home, policy: ImpressionPolicy = FEW) -> skew.Skew:
    with served_shop.environment(home):
        return skew.measure(home, Window(SECOND, AS_OF), policy)


def test_logged_features_are_those_of_training_to_the_last_bit(logged: Home):
    found = measured(logged, ALL)
    assert found.requests + found.left_out == 6
    assert found.requests >= 4
    assert found.values > 4 * 10 * 10
    assert found.wrong == 0, found.by_feature
    assert found.scores == found.requests * 10
    assert (found.wrong_scores, found.largest) == (0, pytest.approx(0, abs=1e-6))
    assert found.judged(ALL)[0] == skew.OK


def test_every_arm_of_an_experiment_answers_from_its_own_release(logged: Home, tmp_path: Path):
    """Version 1 serves the blend, the champion ranks, the third arm re-ranks: three lists, each under its label."""
    home = served_shop.copied(logged, tmp_path / "var")
    arms = "[x]\n[x.arms.champion]\n[x.arms.first]\nversion = 1\n[x.arms.varied]\n[x.arms.varied.rerank]\nmmr = true\n"
    (home.root / assignment.FILE).write_text(arms, encoding="utf-8")
    with served_shop.environment(home):
        knowledge = Knowledge(home, config.load(home).serving.model_copy(update={"deadline": PATIENT}))
        serving = choosing.serving(home)
        assert serving is not None
        champion = engine.bound(knowledge, serving)

        def load(version: int) -> engine.Engine:
            return engine.bound(knowledge, choosing.loaded(home, version, choosing.digests(home)[version]))

        made = Experimenting(home, lambda ask: (champion, ""), load)
        made.follow()
        assert made.trouble == ""
        found = {}
        for number in range(40):
            asked = Ask("home", "r", AT, user_id=f"someone-{number}")
            answering, label = made.pick(asked)
            assert answering is made.pick(asked)[0]
            if label not in found:
                found[label] = answering.answer(asked)
    assert {label: answer.release.version for label, answer in found.items()} == {"x:champion": 2, "x:first": 1, "x:varied": 2}
    assert len({tuple(one.item_id for one in answer.items) for answer in found.values()}) == 3


@pytest.mark.slow
def test_a_feature_that_is_computed_otherwise_is_named(logged: Home, tmp_path: Path):
    def shift(row: dict) -> None:
        name = next(one for one in sorted(row["feature_values"]) if one.startswith("item_daily__") and row["feature_values"][one])
        names.add(name)
        row["feature_values"][name] *= 1.01

    names: set[str] = set()
    found = measured(changed(logged, tmp_path / "var", shift))
    assert found.wrong == found.requests * 10 > 0
    assert set() < set(found.by_feature) <= names
    verdict, reasons = found.judged(ALL)
    assert verdict == skew.SKEWED
    assert "values differ" in reasons[0]


@pytest.mark.slow
def test_a_value_that_went_missing_and_a_score_that_is_another_are_told(logged: Home, tmp_path: Path):
    def lose(row: dict) -> None:
        name = next(one for one, value in sorted(row["feature_values"].items()) if value is not None and one not in skew.TOLD)
        row["feature_values"][name] = None

    def rescore(row: dict) -> None:
        row["score"] += 1e-3

    assert measured(changed(logged, tmp_path / "lost", lose)).wrong > 0
    found = measured(changed(logged, tmp_path / "scored", rescore))
    assert found.wrong == 0
    assert found.wrong_scores == found.scores > 0
    assert "scores are not the model's" in found.judged(ALL)[1][0]


@pytest.mark.slow
def test_an_event_that_the_request_had_not_received_would_be_a_leak_and_shows(logged: Home, tmp_path: Path):
    """Were requests recomputed a day later, features of time and history would differ: the moment matters."""
    later = changed(logged, tmp_path / "var", lambda row: row.update(shown_at=row["shown_at"] + timedelta(days=3)))
    with served_shop.environment(later):
        file = next((later.lake / "impressions").rglob("*.parquet"))
        moved = file.parent.with_name(f"shown_date={SECOND + 3 * DAY:%Y-%m-%d}")
        file.parent.rename(moved)
        found = skew.measure(later, Window(SECOND, SECOND + 5 * DAY), FEW)
    assert found.wrong > 0


def test_what_cannot_be_compared_is_no_verdict(served: Home, tmp_path: Path, logged: Home):
    home = served_shop.copied(served, tmp_path / "var")
    with served_shop.environment(home):
        assert skew.check(home, AS_OF)["verdict"] == skew.UNKNOWN
    gone = changed(logged, tmp_path / "gone", lambda row: row.update(model_version="99"))
    found = measured(gone)
    assert (found.requests, found.left_out) == (0, 3)
    assert np.isnan(found.rate)
    assert found.judged(ALL)[0] == skew.UNKNOWN


def test_the_verb_the_report_and_the_metrics_tell(logged: Home, tmp_path: Path):
    home = served_shop.copied(logged, tmp_path / "var")
    with served_shop.environment(home):
        done = CliRunner().invoke(app, ["skew", "--as-of", f"{AS_OF:%Y-%m-%d}", "--json", "--home", str(home.root)])
        assert done.exit_code == 0, done.output
        said = json.loads(done.stdout)
        assert (said["verdict"], said["wrong"], said["rate"]) == (skew.OK, 0, 0.0)
        figures = report.write(home, AS_OF)
    assert figures["cycles"][-1]["skew"]["verdict"] == skew.OK
    assert "reloop_skew_mismatch_ratio 0\n" in (home.reports / "metrics.prom").read_text()
    assert "skew" in (home.reports / "index.html").read_text() + next((home.reports / "runs").glob("*.html")).read_text()


@pytest.mark.slow
def test_a_skewed_service_is_an_exit_code_and_an_alarm(logged: Home, tmp_path: Path):
    home = changed(logged, tmp_path / "var", lambda row: row.update(score=5.0))
    with served_shop.environment(home):
        done = CliRunner().invoke(app, ["skew", "--as-of", f"{AS_OF:%Y-%m-%d}", "--home", str(home.root)])
        assert done.exit_code == 1
        figures = report.gather(home, AS_OF)
    assert any(alarm["what"] == "skew" for alarm in figures["alarms"])


@pytest.mark.parametrize(
    ("variant", "compared"),
    [("", 2), ("x:control", 2), ("rollout-7:canary|x:control", 2), ("x:varied", 0), ("rollout-7:canary|x:varied", 0), ("gone:new", 0)],
)
def test_scores_of_an_arm_that_re_ranks_tell_of_places_not_of_items(home: Home, monkeypatch, variant: str, compared: int):
    """The second item has the higher score of its own, and was given that of its place."""
    home.root.mkdir(parents=True, exist_ok=True)
    home.experiments.write_text("[x.arms.control]\n[x.arms.varied.rerank]\nmmr = true\n", encoding="utf-8")
    values = np.array([[1.0], [2.0]], np.float32)
    ranker = SimpleNamespace(features=("f",), score=lambda matrix, _: matrix[:, 0])
    past = SimpleNamespace(
        home=home, model=SimpleNamespace(ranker=ranker, rerank=RerankSettings(availability=None)), of=lambda one: object()
    )
    monkeypatch.setattr(skew, "recomputed", lambda *_: values)
    one = skew.Shown("r", "u", AT, 1, ("a", "b"), ("f",), values, np.array([2.0, 1.0]), -1, country=False, variant=variant)
    found = skew._with(skew.Skew(), one, past, ALL, Counter())
    assert (found.wrong, found.scores, found.wrong_scores) == (0, compared, compared)
    assert found.judged(ALL)[0] == (skew.SKEWED if compared else skew.OK)


def test_the_verb_that_lands_impressions_tells_what_came(served: Home, tmp_path: Path):
    home = served_shop.copied(served, tmp_path / "var")
    segments.folder(home).mkdir(parents=True)
    whole = {"request_id": "q", "user_id": "u", "shown_at": 1_739_750_400_000_000, "model_version": "1", "variant": None, "surface": "home", "rung": "full",
             "items": [["i", 1, 0.5, 1.0, []]]}  # fmt: skip
    (segments.folder(home) / f"a{segments.CLOSED}").write_text(json.dumps(whole) + "\n", encoding="utf-8")
    done = CliRunner().invoke(app, ["impressions", "--as-of", "2025-02-18", "--json", "--home", str(home.root)])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["rows"] == {"accepted": 1, "duplicates": 0, "quarantined": 0, "read": 1}
