"""The stage that searches knobs for the ranker before it is trained; off unless it is asked for.

training/<as_of>/search/
    trials.json     [{number, knobs, ndcg_at_10, rounds}], in the order they were tried; number 0 is what the settings say
    found.json      the best knobs, how much better than the settings' own they are, and whether the ranker is to have them

Optuna's tree-structured Parzen estimator (Bergstra et al., "Algorithms for hyper-parameter optimization", NIPS 2011) proposes,
seeded. Each trial is kept in a journal as it ends, under the digest of all that it depends on. A search that was killed proposes
the same again, takes what the journal knows, and goes on: it ends where it would have ended. So the same seed gives the same
bytes, unless a budget of seconds cuts the search.

The best of many trials looks better than it is. So it is compared once more with the settings' own knobs, on lists that
chose nothing, paired; and it is used only if it is better there with a lower bound above 0.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipelines import config, cycle, publish
from pipelines.config import Home
from pipelines.datasets import universe
from pipelines.errors import StateError
from pipelines.evaluation import paired
from pipelines.model_settings import RankingSettings, SearchSettings
from pipelines.ranking import rankers, search_space, training_set
from pipelines.ranking.ensemble import Ensemble
from pipelines.ranking.search_space import Split
from pipelines.ranking.trees import Boosted

CONFIDENCE: Final = 0.95
RANDOM_TRIALS: Final = 8  # before the first that learns from them
FEWEST_LISTS: Final = 50  # of the newest window; fewer tell nothing apart

Trial = dict[str, Any]
log = logging.getLogger(__name__)


def folder(home: Home, as_of: datetime) -> Path:
    """Return where the search of a run is kept."""
    return universe.run_folder(home, as_of) / "search"


def search(home: Home, as_of: datetime, policy: SearchSettings | None = None, told: Callable[[Trial], None] = lambda _: None) -> None:
    """Try knobs on the run's training rows and publish what was found; nothing is tried where the budget is no trial.

    Args:
        policy: instead of the settings' own.
        told: is handed each trial as it ends, also those that the journal knew.

    Raises:
        StateError: the training rows were not built, or the ranker is not made of trees.
    """
    settings = config.load(home)
    policy = policy or settings.search
    if not policy.n_trials:
        return
    with cycle.stage(home, as_of, "search") as record:
        record |= {"trials": 0, "used": False, "reasons": []}
        name, ranker = _ranker(settings.ranking)
        rows = training_set.load(home, as_of)
        if (lists := int(rows.newest().sum())) < FEWEST_LISTS:
            record["reasons"] = [f"no search: {lists} lists in the newest of the windows, {FEWEST_LISTS} needed, and an older window"]
            return
        split = Split.of(rows, policy.seed)
        began = {"rows": publish.manifest(training_set.folder(home, as_of)).digest, "ranking": settings.ranking.model_dump(mode="json")}
        trials, seconds = _tried(_journal(home, began, policy), ranker, split, policy, told)
        found = _verified(name, ranker, trials, split, policy)
        facts = began | {"search": policy.model_dump(mode="json"), "seconds": round(seconds, 3)}
        with publish.folder(folder(home, as_of), facts) as out:
            publish.write_json(out / "trials.json", [{key: trial[key] for key in trial if key != "seconds"} for trial in trials])
            publish.write_json(out / "found.json", found)
        record |= {"trials": len(trials), **found}


def asked(home: Home, n_trials: int | None) -> SearchSettings:
    """Return the settings of the search, with another number of trials if one is given."""
    policy = config.load(home).search
    return policy if n_trials is None else policy.model_copy(update={"n_trials": n_trials})


def applied(home: Home, as_of: datetime, settings: RankingSettings) -> tuple[RankingSettings, list[str]]:
    """Return the settings with the knobs that a search of this run found, and what is to be said of it.

    Knobs that were found on other rows, or beside other settings, are left alone, and so are those that were not
    shown to be better.
    """
    if not (folder(home, as_of) / publish.MANIFEST).is_file():
        return settings, []
    facts = publish.manifest(folder(home, as_of), verify=True).facts
    if facts["rows"] != publish.manifest(training_set.folder(home, as_of)).digest:
        return settings, ["the search was made on other training rows; its knobs are not used"]
    if facts["ranking"] != settings.model_dump(mode="json"):
        return settings, ["the search was made beside other settings; its knobs are not used"]
    found = json.loads((folder(home, as_of) / "found.json").read_text(encoding="utf-8"))
    if not found["used"]:
        return settings, found["reasons"]
    knobs = settings.parameters.get(found["ranker"], {}) | found["knobs"]
    return settings.model_copy(update={"parameters": settings.parameters | {found["ranker"]: knobs}}), found["reasons"]


def trials(home: Home, as_of: datetime) -> list[Trial]:
    """Return what was tried in a run, in order; empty if nothing was searched."""
    file = folder(home, as_of) / "trials.json"
    return list(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else []


def _ranker(settings: RankingSettings) -> tuple[str, Boosted]:
    """Return the ranker whose knobs are searched, an ensemble's own new one."""
    ranker = rankers.chosen(settings)
    if isinstance(ranker, Ensemble):
        ranker = rankers.chosen(settings, ranker.ranker)
    if not isinstance(ranker, Boosted):
        trees = [name for name, one in rankers.RANKERS.items() if isinstance(one, Boosted)]
        raise StateError(
            f"search of knobs for {rankers.name_of(ranker)!r}", found="no space to search", allowed=f"a ranker of trees: {trees}",
            hint="set search.n_trials = 0",
        )  # fmt: skip
    return rankers.name_of(ranker), ranker


def _journal(home: Home, began: dict[str, Any], policy: SearchSettings) -> Path:
    """Return the file of the trials that depend on the same as these."""
    versions = {package: version(package) for package in ("optuna", "lightgbm")}
    space = {name: vars(bounds) for name, bounds in search_space.SPACE.items()}
    key = publish.to_json(began | {"seed": policy.seed, "versions": versions, "space": space})
    return home.cache / "search" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.jsonl"


def _known(journal: Path) -> list[Trial]:
    """Return the trials of a journal up to the first line that a kill tore, and cut it there."""
    known: list[Trial] = []
    if journal.is_file():
        lines = journal.read_text(encoding="utf-8").splitlines()
        for line in lines:
            try:
                known.append(json.loads(line))
            except ValueError:
                break
        if len(known) < len(lines):
            publish.write_text(journal, "".join(json.dumps(trial) + "\n" for trial in known))
    return known


def _tried(
    journal: Path, ranker: Boosted, split: Split, policy: SearchSettings, told: Callable[[Trial], None]
) -> tuple[list[Trial], float]:
    """Return all trials within the budget, and their seconds, those of earlier attempts among them."""
    import optuna  # seconds to import, and off by default

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = search_space.of(ranker)
    spread: dict[str, optuna.distributions.BaseDistribution] = {
        name: optuna.distributions.IntDistribution(int(one.low), int(one.high), log=one.log)
        if one.whole
        else optuna.distributions.FloatDistribution(one.low, one.high, log=one.log)
        for name, one in space.items()
    }
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=policy.seed, n_startup_trials=RANDOM_TRIALS))
    known, done, seconds = _known(journal), [], 0.0
    journal.parent.mkdir(parents=True, exist_ok=True)
    for number in range(policy.n_trials + 1):
        if number and policy.seconds and seconds >= policy.seconds:
            break
        asked = study.ask(spread) if number else None
        knobs = search_space.completed(asked.params) if asked else {}
        if number < len(known) and known[number]["knobs"] == knobs:
            trial = known[number]
        else:
            start = time.perf_counter()
            found = search_space.judged(replace(ranker, **knobs), split)
            value = float(np.nanmean(found.chosen_on))
            spent = round(time.perf_counter() - start, 3)
            trial = {"number": number, "knobs": knobs, "ndcg_at_10": value, "rounds": found.rounds, "seconds": spent}
            with journal.open("a", encoding="utf-8") as file:
                file.write(json.dumps(trial) + "\n")
                file.flush()
                os.fsync(file.fileno())
        if asked:
            study.tell(asked, trial["ndcg_at_10"])
        else:
            # What the settings say is no draw, but it tells of its place.
            at = {name: min(max(getattr(ranker, name), bounds.low), bounds.high) for name, bounds in space.items()}
            study.add_trial(optuna.trial.create_trial(params=at, distributions=spread, value=trial["ndcg_at_10"]))
        seconds += trial["seconds"]
        done.append(trial)
        told(trial)
        log.info("trial %d of %d: NDCG@10 %.4f with %s", number, policy.n_trials, trial["ndcg_at_10"], knobs or "the settings' own knobs")
    return done, seconds


def _verified(name: str, ranker: Boosted, done: list[Trial], split: Split, policy: SearchSettings) -> dict[str, Any]:
    """Return the best trial beside the settings' own knobs, on the lists that chose nothing."""
    best = max(done, key=lambda trial: trial["ndcg_at_10"])  # the first of equals
    if not best["number"]:
        return {"ranker": name, "knobs": {}, "used": False, "reasons": [f"none of {len(done) - 1} trials beat the settings' own knobs"]}
    own = search_space.judged(ranker, split).verified_on
    new = search_space.judged(replace(ranker, **best["knobs"]), split).verified_on
    gap = paired.interval(new - own, seed=policy.seed)
    lower = paired.lower_bound(new - own, CONFIDENCE, policy.seed)
    used = bool(lower > 0)
    verdict = "used" if used else "not used: that may be chance"
    said = f"trial {best['number']} of {len(done) - 1} differs by {gap.mean:+.4f} [{gap.lower:+.4f}, {gap.upper:+.4f}] NDCG@10 on lists that chose nothing; {verdict}"
    return {
        "ranker": name,
        "knobs": best["knobs"],
        "used": used,
        "reasons": [f"search of knobs: {said}"],
        "own_ndcg_at_10": float(np.nanmean(own)),
        "ndcg_at_10": float(np.nanmean(new)),
        "difference": gap.mean,
        "difference_lower": gap.lower,
        "difference_upper": gap.upper,
        "bound": lower,
        "n_lists": gap.n,
    }
