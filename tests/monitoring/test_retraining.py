"""A training for a new catalogue alone keeps the champion's ranker, byte for byte, where it can read the features."""

from __future__ import annotations

from dataclasses import replace

import pytest
from trained_shop import FIRST, SECOND

from pipelines import cycle, publish
from pipelines.config import Home
from pipelines.monitoring import retraining
from pipelines.ranking import training, training_set
from pipelines.registry import bundle, promotion, releases


def ask(home: Home, *, due: bool = True, scope: str = "catalogue") -> None:
    with cycle.stage(home, SECOND, "trigger") as record:
        record.update(due=due, scope=scope, reasons=["a quarter of the items is new"])


@pytest.mark.parametrize(("due", "scope", "asked"), [(True, "catalogue", True), (True, "all", False), (False, "catalogue", False)])
def test_the_trigger_says_what_is_made_again(home: Home, due: bool, scope: str, asked: bool) -> None:
    assert not retraining.asked(home, SECOND)
    ask(home, due=due, scope=scope)
    assert retraining.asked(home, SECOND) is asked


def test_the_champions_ranker_is_kept_and_no_other(fresh: Home) -> None:
    promotion.decide(fresh, FIRST)
    champion = releases.champion(fresh)
    assert champion is not None
    old = bundle.folder(fresh, champion.digest) / bundle.MODEL_FOLDER / "ranker"
    kept = {file.name: publish.digest(file) for file in old.iterdir() if file.is_file() and file.name != publish.MANIFEST}
    assert kept

    def trained() -> dict[str, str]:
        folder = training.folder(fresh, SECOND)
        return {file.name: publish.digest(file) for file in folder.iterdir() if file.name in kept}

    retraining.rank(fresh, SECOND)
    anew = trained()
    assert anew != kept
    ask(fresh)
    retraining.rank(fresh, SECOND)
    assert trained() == kept
    (record,) = cycle.records(fresh, SECOND, "ranker")
    assert "kept" in record["reasons"][-1]
    ask(fresh, scope="all")
    retraining.rank(fresh, SECOND)
    assert trained() == anew


def test_a_ranker_that_reads_what_is_not_made_any_more_is_not_kept(fresh: Home) -> None:
    promotion.decide(fresh, FIRST)
    champion, rows = retraining._champion(fresh), training_set.load(fresh, SECOND)
    assert champion is not None
    assert training._kept(champion, rows)[0] is champion
    gone = champion.features[0]
    kept, (reason,) = training._kept(champion, replace(rows, names=tuple(name for name in rows.names if name != gone)))
    assert kept is None
    assert f"reads ['{gone}'], which are not made any more" in reason
