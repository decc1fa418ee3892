"""The stage that fits the ranker, and the cheap baselines beside it that it must beat.

training/<as_of>/ranker/
    ranker.json ...            the ranker, as `rankers` keeps it
    baselines/<name>/...       each of `ranking.baselines`, likewise
The folder holds its manifest alone where there was too little to learn from.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any, Final

from pipelines import config, cycle, publish
from pipelines.config import Home
from pipelines.datasets import universe
from pipelines.model_settings import RankingSettings
from pipelines.ranking import rankers, search, training_set
from pipelines.ranking.ensemble import Ensemble, unmet
from pipelines.ranking.protocol import Ranker, RankingRows

BASELINES: Final = "baselines"


def folder(home: Home, as_of: datetime) -> Path:
    """Return where the ranker of a run is kept."""
    return universe.run_folder(home, as_of) / "ranker"


def train(home: Home, as_of: datetime, champion: Ranker | None = None, *, keep: bool = False) -> None:
    """Fit the ranker on the run's training rows and publish it; with too few lists, publish that there is none.

    Args:
        champion: the ranker of the release that serves, for `ensemble`. Without one, or where it reads a feature that is
            not made any more, the new ranker is trained alone and the record says so.
        keep: publish the champion's ranker as it is and train none, where it can read the run's features: only the catalogue is new.

    Raises:
        StateError: the training rows were not built, or were changed.
    """
    with cycle.stage(home, as_of, "ranker") as record:
        settings, said = search.applied(home, as_of, config.load(home).ranking)
        rows = training_set.load(home, as_of)
        facts: dict[str, Any] = {"settings": settings.model_dump(mode="json"), "trained": len(rows.group) >= settings.min_training_lists}
        record |= {"ranker": settings.ranker, "trained": facts["trained"], "trees": 0, "importance": {}, "reasons": []}
        with publish.folder(folder(home, as_of), facts) as out:
            if facts["trained"]:
                fitted, reasons = _kept(champion, rows) if keep and champion else (None, [])
                if fitted is None:
                    ranker, more = unfitted(settings, champion, rows)
                    fitted, reasons = ranker.fit(rows), reasons + more
                rankers.save(out, fitted)
                facts["ranker"] = rankers.name_of(fitted)
                record |= {"ranker": facts["ranker"], **fitted.size, "importance": fitted.importance, "reasons": said + reasons}
                for name in settings.baselines:
                    rankers.save(out / BASELINES / name, rankers.chosen(settings, name).fit(rows))
            else:
                why = f"{len(rows.group)} users with a positive among their candidates, {settings.min_training_lists} needed"
                facts["reason"] = why
                record["reasons"] = [f"no ranker: {why}; the blend is served"]


def _kept(champion: Ranker, rows: RankingRows) -> tuple[Ranker | None, list[str]]:
    """Return the champion's ranker if the run's features are all that it reads, None otherwise, and why."""
    if missing := [name for name in champion.features if name not in rows.names]:
        return None, [f"the champion's ranker reads {missing}, which are not made any more; a new one is trained"]
    return champion, ["the champion's ranker is kept: sources and cold-start vectors were made again for a new catalogue"]


def unfitted(settings: RankingSettings, champion: Ranker | None, rows: RankingRows) -> tuple[Ranker, list[str]]:
    """Return the ranker that is to be fitted, and why it is another than the settings name."""
    ranker = rankers.chosen(settings)
    if not isinstance(ranker, Ensemble):
        return ranker, []
    alone = rankers.chosen(settings, ranker.ranker)
    if champion is None:
        return alone, [f"no ensemble: no champion has a ranker; {ranker.ranker} is trained alone"]
    joined = ranker.of(alone, champion)
    old = joined.state.old if joined.state else champion
    if missing := unmet(old, rows.names):
        return alone, [f"no ensemble: the champion's ranker reads {missing}, which are not made any more; {ranker.ranker} is trained alone"]
    return joined, []


def trained(home: Home, as_of: datetime) -> Ranker | None:
    """Return the ranker of a run, every byte checked before it is parsed; None if there was too little to learn from.

    Raises:
        StateError: the rank stage did not run, or a file was changed.
    """
    facts = publish.manifest(folder(home, as_of), verify=True).facts
    return rankers.load(folder(home, as_of)) if facts["trained"] else None


def baselines(home: Home, as_of: datetime) -> dict[str, Ranker]:
    """Return the cheap rankers of a run, checked likewise; none if there was too little to learn from.

    Raises:
        StateError: the rank stage did not run, or a file was changed.
    """
    publish.manifest(folder(home, as_of), verify=True)
    return {
        file.parent.name: rankers.load(file.parent) for file in sorted((folder(home, as_of) / BASELINES).glob(f"*/{rankers.RANKER_FILE}"))
    }
