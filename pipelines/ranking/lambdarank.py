"""LightGBM lambdarank: gradient-boosted trees trained on the pairs that move NDCG; and the stage that trains it.

    training/<as_of>/ranker/
        model.txt         LightGBM's own text
        features.json     names in the order of the columns, schema hash, sha256 of the model, knobs
        importance.json   [{feature, gain}], share of the total split gain, largest first
    The folder holds its manifest alone where there was too little to learn from.

Burges, "From RankNet to LambdaRank to LambdaMART" (MSR-TR-2010-82), as LightGBM implements it.
Deterministic for a seed and a thread count.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import lightgbm
import numpy as np
import numpy.typing as npt

from pipelines import config, cycle, publish
from pipelines.config import Home, RankingSettings
from pipelines.datasets import universe
from pipelines.datasets.interactions import Floats
from pipelines.errors import StateError
from pipelines.ranking import training_set
from pipelines.ranking.protocol import RankingRows, schema_hash

MODEL_FILE: Final = "model.txt"
FEATURES_FILE: Final = "features.json"
IMPORTANCE_FILE: Final = "importance.json"
STOP_AFTER: Final = 15  # rounds without a better NDCG on the newest window
MAX_ROWS_PER_LIST: Final = 10_000  # LightGBM refuses more


@dataclass(frozen=True)
class Fitted:
    """What lambdarank learnt: the trees as LightGBM's own text, the features they read, and their gain."""

    text: str
    names: tuple[str, ...]
    gain: dict[str, float]  # feature -> share of the total split gain, largest first
    booster: lightgbm.Booster

    @property
    def n_trees(self) -> int:
        """Return the number of trees."""
        return int(self.booster.num_trees())


@dataclass(frozen=True)
class LambdaRank:
    """Lambdarank over one row per candidate.

    Where the rows come from two windows or more, the number of rounds is what was best for the
    newest window when trained on the older ones; the model is then fitted on all windows.
    """

    learning_rate: float = 0.05
    num_leaves: int = 15
    n_rounds: int = 150
    min_data_in_leaf: int = 50
    num_threads: int = 2
    seed: int = 7
    state: Fitted | None = None

    @classmethod
    def of(cls, settings: RankingSettings) -> LambdaRank:
        """Return the unfitted ranker that the settings describe."""
        return cls(**settings.model_dump(include={"learning_rate", "num_leaves", "n_rounds", "min_data_in_leaf", "num_threads", "seed"}))

    def fit(self, rows: RankingRows) -> LambdaRank:
        """Return a fitted copy.

        Raises:
            StateError: no row, or a list longer than LightGBM takes.
        """
        if not len(rows.gain) or rows.group.max() > MAX_ROWS_PER_LIST:
            raise StateError(
                "training rows of the ranker",
                found=f"{len(rows.gain)} rows, longest list {rows.group.max(initial=0)}",
                allowed=f"at least one row and lists of at most {MAX_ROWS_PER_LIST}",
                hint="lower retrieval.k_blend",
            )
        grades, position = np.unique(np.append(rows.gain, np.float32(0.0)), return_inverse=True)
        # LightGBM wants small integers as labels; label_gain maps them back to our gains.
        label: npt.NDArray[np.int32] = np.asarray(position[:-1], dtype=np.int32)
        parameters = self._parameters([float(grade) for grade in grades])
        rounds = self.n_rounds
        newest = rows.window == rows.window.max()
        if not newest.all():
            rounds = self._best_rounds(parameters, rows, label, newest)
        booster = lightgbm.train(parameters, _dataset(rows, label, parameters), num_boost_round=rounds)
        text = str(booster.model_to_string(num_iteration=-1))
        shares = booster.feature_importance("gain")
        shares = shares / max(float(shares.sum()), 1e-12)
        order = np.argsort(-shares, kind="stable")
        gain = {rows.names[i]: round(float(shares[i]), 6) for i in order}
        return replace(self, state=parse(text, rows.names, gain))

    def _parameters(self, label_gain: list[float]) -> dict[str, Any]:
        return {
            "objective": "lambdarank",
            "metric": "ndcg",
            "eval_at": [10],
            "label_gain": label_gain,
            "lambdarank_truncation_level": 20,
            "learning_rate": self.learning_rate,
            "num_leaves": self.num_leaves,
            "min_data_in_leaf": self.min_data_in_leaf,
            "num_threads": self.num_threads,
            "seed": self.seed,
            "deterministic": True,
            "force_row_wise": True,
            "verbosity": -1,
        }

    def _best_rounds(
        self, parameters: dict[str, Any], rows: RankingRows, label: npt.NDArray[np.int32], newest: npt.NDArray[np.bool_]
    ) -> int:
        per_row = np.repeat(newest, rows.group)
        older = _dataset(rows.of_windows(~newest), label[~per_row], parameters)
        held = rows.of_windows(newest)
        judged = lightgbm.Dataset(held.features, label[per_row], group=held.group, reference=older, params=parameters)
        stopped = lightgbm.train(
            parameters,
            older,
            num_boost_round=self.n_rounds,
            valid_sets=[judged],
            callbacks=[lightgbm.early_stopping(STOP_AFTER, verbose=False)],
        )
        return int(stopped.best_iteration) or self.n_rounds

    def score(self, features: Floats) -> npt.NDArray[np.float64]:
        """Return float64 [n], the summed leaves.

        Raises:
            StateError: not fitted, or another number of features.
        """
        state = self._fitted()
        if features.shape[1] != len(state.names):
            raise StateError("feature matrix", found=f"{features.shape[1]} columns", allowed=f"the ranker's {len(state.names)} features")
        if not len(features):
            return np.zeros(0)
        return np.asarray(state.booster.predict(features, num_threads=self.num_threads), dtype=np.float64)

    @property
    def features(self) -> tuple[str, ...]:
        """Return the features it reads, in the order of the matrix."""
        return self._fitted().names

    def _fitted(self) -> Fitted:
        if self.state is None:
            raise StateError("lambdarank", found="not fitted", allowed="a fitted ranker", hint="call fit first")
        return self.state

    def save(self, folder: Path) -> None:
        """Write the model, its features and their importance into a folder that the caller publishes."""
        state = self._fitted()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MODEL_FILE).write_text(state.text, encoding="utf-8")
        described = {
            "features": list(state.names),
            "schema_hash": schema_hash(state.names),
            "model_sha256": hashlib.sha256(state.text.encode()).hexdigest(),
            "knobs": {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "state"},
        }
        (folder / FEATURES_FILE).write_text(publish.to_json(described), encoding="utf-8")
        # A list keeps the order, which canonical JSON would sort away.
        ranked = [{"feature": name, "gain": share} for name, share in state.gain.items()]
        (folder / IMPORTANCE_FILE).write_text(publish.to_json(ranked), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> LambdaRank:
        """Read what `save` wrote. The text is parsed only after its digest was found right.

        A damaged model file aborts or hangs the native parser, or scores wrongly without a word;
        so the bytes are checked first, here, whatever the caller has verified.

        Raises:
            StateError: a file is missing or damaged, or the features do not match their schema hash.
        """
        try:
            described = json.loads((folder / FEATURES_FILE).read_text(encoding="utf-8"))
            ranked = json.loads((folder / IMPORTANCE_FILE).read_text(encoding="utf-8"))
            raw = (folder / MODEL_FILE).read_bytes()
            names, knobs = tuple(described["features"]), dict(described["knobs"])
            expected, schema = described["model_sha256"], described["schema_hash"]
            gain = {entry["feature"]: float(entry["gain"]) for entry in ranked}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StateError(
                str(folder), found=f"{type(error).__name__}: {error}", allowed="a saved ranker", hint="run the rank stage again"
            ) from error
        found = hashlib.sha256(raw).hexdigest()
        if found != expected:
            raise StateError(str(folder / MODEL_FILE), found=f"sha256 {found}", allowed=expected, hint="run the rank stage again")
        if schema_hash(names) != schema:
            raise StateError(
                str(folder / FEATURES_FILE), found=f"schema hash {schema_hash(names)}", allowed=schema, hint="run the rank stage again"
            )
        return replace(cls(**knobs), state=parse(raw.decode(), names, gain))


def parse(text: str, names: tuple[str, ...], gain: dict[str, float]) -> Fitted:
    """Return the fitted state of a model text that is known to be intact."""
    return Fitted(text, names, gain, lightgbm.Booster(model_str=text))


def _dataset(rows: RankingRows, label: npt.NDArray[np.int32], parameters: dict[str, Any]) -> lightgbm.Dataset:
    return lightgbm.Dataset(
        rows.features,
        label,
        group=rows.group,
        feature_name=[f"f{i}" for i in range(len(rows.names))],
        params=parameters,
        free_raw_data=True,
    )


def folder(home: Home, as_of: datetime) -> Path:
    """Return where the ranker of a run is kept."""
    return universe.run_folder(home, as_of) / "ranker"


def train(home: Home, as_of: datetime) -> None:
    """Fit the ranker on the run's training rows and publish it; with too few lists, publish that there is none.

    Raises:
        StateError: the training rows were not built, or were changed.
    """
    settings = config.load(home).ranking
    with cycle.stage(home, as_of, "ranker") as record:
        rows = training_set.load(home, as_of)
        facts: dict[str, Any] = {"settings": settings.model_dump(mode="json"), "trained": len(rows.group) >= settings.min_training_lists}
        record |= {"trained": facts["trained"], "trees": 0, "importance": {}, "reasons": []}
        with publish.folder(folder(home, as_of), facts) as out:
            if facts["trained"]:
                fitted = LambdaRank.of(settings).fit(rows)
                fitted.save(out)
                state = fitted._fitted()
                record |= {"trees": state.n_trees, "importance": state.gain}
            else:
                why = f"{len(rows.group)} users with a positive among their candidates, {settings.min_training_lists} needed"
                facts["reason"] = why
                record["reasons"] = [f"no ranker: {why}; the blend is served"]


def trained(home: Home, as_of: datetime) -> LambdaRank | None:
    """Return the ranker of a run, every byte checked before it is parsed; None if there was too little to learn from.

    Raises:
        StateError: the rank stage did not run, or a file was changed.
    """
    facts = publish.manifest(folder(home, as_of), verify=True).facts
    return LambdaRank.load(folder(home, as_of)) if facts["trained"] else None
