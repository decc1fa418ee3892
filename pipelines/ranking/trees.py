"""Gradient-boosted trees as LightGBM trains them: what the rankers made of them share.

    model.txt         LightGBM's own text
    importance.json   [{feature, gain}], share of the total split gain, largest first

Where the rows come from two windows or more, the number of rounds is what was best for the newest
window when trained on the older ones; the trees are then grown on all windows. Deterministic for
a seed and a thread count: the order in which LightGBM adds up histograms follows the threads.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Annotated, Any, ClassVar, Final, Self

import lightgbm
import numpy as np
import numpy.typing as npt

from pipelines import publish
from pipelines.datasets.interactions import Floats, Ints
from pipelines.errors import StateError
from pipelines.knobs import Range
from pipelines.ranking import scale_out
from pipelines.ranking.forest import Forest
from pipelines.ranking.protocol import RankingRows, check_width

MODEL_FILE: Final = "model.txt"
IMPORTANCE_FILE: Final = "importance.json"
MAX_ROWS_PER_LIST: Final = 10_000  # LightGBM refuses more

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Fitted:
    """What the trees learnt: LightGBM's own text, the features they read, their gain, and what else their ranker keeps."""

    text: str
    names: tuple[str, ...]
    gain: dict[str, float]  # feature -> share of the total split gain, largest first
    forest: Forest  # scores as LightGBM does, made here so that no request waits for it
    extras: tuple[tuple[str, bytes], ...] = ()  # files of the ranker's own

    @property
    def n_trees(self) -> int:
        """Return the number of trees."""
        return int(self.booster.num_trees())

    @property
    def booster(self) -> lightgbm.Booster:
        """Return the model as LightGBM holds it."""
        return self.forest.booster


@dataclass(frozen=True)
class Aim:
    """What trees are asked to learn from some rows.

    Attributes:
        parameters: LightGBM's name of the objective and of its metric, and what these need.
        label: float32 [n].
        weight: float32 [n]; None where all rows count alike.
        position: int32 [n]; None where the place of a row says nothing.
    """

    parameters: Mapping[str, Any]
    label: Floats
    weight: Floats | None = None
    position: Ints | None = None

    def dataset(
        self, rows: RankingRows, span: slice | npt.NDArray[np.intp], parameters: dict[str, Any], reference: lightgbm.Dataset | None = None
    ) -> Any:
        """Return some of the rows as LightGBM reads them.

        Args:
            rows: the lists of the span, whole.
            span: which rows of this aim they are.
        """
        return lightgbm.Dataset(
            rows.features,
            self.label[span],
            weight=None if self.weight is None else self.weight[span],
            group=rows.group,
            position=None if self.position is None else self.position[span],
            feature_name=[f"f{i}" for i in range(len(rows.names))],
            params=parameters,
            reference=reference,
            free_raw_data=True,
        )


@dataclass(frozen=True, kw_only=True)
class Boosted(ABC):
    """Trees over one row per candidate; what they aim at is said by who inherits.

    Attributes:
        n_rounds: at most so many trees; with two windows or more, as many as were best for the newest.
        min_data_in_leaf: rows.
        patience: rounds without a better score on the newest window after which no more are tried.
        feature_share, row_share: of the features a tree may split by, and of the rows it is grown on.
        regularization: L2, on the value of a leaf.
        increasing, decreasing: shell patterns of feature names by which the score may only rise, or only fall, all else equal.
        n_workers, scheduler: processes of this machine, or the address of a Dask scheduler whose workers, that grow the trees
            together (`scale_out`; the extra `dask`); 0 and none: this process.
        state: None until fitted.
    """

    learning_rate: float = 0.05
    num_leaves: Annotated[int, Range(2, 131_072)] = 15
    n_rounds: int = 150
    min_data_in_leaf: Annotated[int, Range(0, 2**31 - 1)] = 50
    patience: int = 15
    feature_share: Annotated[float, Range(0, 1, above=True)] = 1.0
    row_share: Annotated[float, Range(0, 1, above=True)] = 1.0
    regularization: float = 0.0
    increasing: tuple[str, ...] = ()
    decreasing: tuple[str, ...] = ()
    num_threads: int = 2
    n_workers: Annotated[int, Range(0, 1024)] = 0
    scheduler: str = ""
    seed: int = 7
    state: Fitted | None = None

    name: ClassVar[str]

    @abstractmethod
    def aim(self, rows: RankingRows) -> Aim:
        """Return what is to be learnt from the rows."""

    def learn_more(self, margin: Doubles, held: RankingRows) -> tuple[tuple[str, bytes], ...]:
        """Return what else is learnt from how trees that never saw the newest window scored it, as files by name; nothing here.

        Args:
            margin: float64 [n], their scores of the rows of `held`.
        """
        del margin, held
        return ()

    def fit(self, rows: RankingRows) -> Self:
        """Return a fitted copy.

        Raises:
            StateError: no row, a list longer than LightGBM takes, or a monotone constraint on no feature.
        """
        if not len(rows.gain) or rows.group.max() > MAX_ROWS_PER_LIST:
            raise StateError(
                "training rows of the ranker",
                found=f"{len(rows.gain)} rows, longest list {rows.group.max(initial=0)}",
                allowed=f"at least one row and lists of at most {MAX_ROWS_PER_LIST}",
                hint="lower retrieval.k_blend",
            )
        aim = self.aim(rows)
        parameters = self.parameters(aim, rows.names)
        rounds = self.n_rounds
        extras: tuple[tuple[str, bytes], ...] = ()
        with scale_out.cluster(self.n_workers, self.scheduler) as client:
            if (newest := rows.newest()).any():
                rounds, extras = self._tried(aim, rows, newest, parameters, client)
            if client is None:
                booster = lightgbm.train(parameters, aim.dataset(rows, slice(None), parameters), num_boost_round=rounds)
            else:
                booster = scale_out.train(client, parameters, rows, label=aim.label, weight=aim.weight, n_rounds=rounds)
        text = str(booster.model_to_string(num_iteration=-1))
        shares = booster.feature_importance("gain")
        shares = shares / max(float(shares.sum()), 1e-12)
        gain = {rows.names[i]: round(float(shares[i]), 6) for i in np.argsort(-shares, kind="stable")}
        return replace(self, state=parse(text, rows.names, gain, extras))

    def parameters(self, aim: Aim, names: tuple[str, ...]) -> dict[str, Any]:
        """Return what LightGBM is told, knobs and aim together."""
        sampled = {"bagging_fraction": self.row_share, "bagging_freq": 1} if self.row_share < 1 else {}
        tied = monotone(names, self.increasing, self.decreasing)
        return {
            "learning_rate": self.learning_rate,
            "num_leaves": self.num_leaves,
            "min_data_in_leaf": self.min_data_in_leaf,
            "feature_fraction": self.feature_share,
            "lambda_l2": self.regularization,
            "num_threads": self.num_threads,
            "seed": self.seed,
            "deterministic": True,
            "force_row_wise": True,
            "verbosity": -1,
            **sampled,
            **({"monotone_constraints": tied, "monotone_constraints_method": "intermediate"} if any(tied) else {}),
            **aim.parameters,
        }

    def _tried(
        self, aim: Aim, rows: RankingRows, newest: npt.NDArray[np.bool_], parameters: dict[str, Any], client: Any
    ) -> tuple[int, tuple[tuple[str, bytes], ...]]:
        """Return the number of rounds that was best for the newest window, and what else was learnt from it."""
        older, held = rows.of_windows(~newest), rows.of_windows(newest)
        n = len(older.gain)
        if client is None:
            known = aim.dataset(older, slice(0, n), parameters)
            stopped = lightgbm.train(
                parameters,
                known,
                num_boost_round=self.n_rounds,
                valid_sets=[aim.dataset(held, slice(n, None), parameters, reference=known)],
                callbacks=[lightgbm.early_stopping(self.patience, verbose=False)],
            )
            rounds = int(stopped.best_iteration) or self.n_rounds
        else:
            weight = None if aim.weight is None else aim.weight[:n]
            stopped = scale_out.train(client, parameters, older, label=aim.label[:n], weight=weight, n_rounds=self.n_rounds)
            rounds = scale_out.best_rounds(stopped, held, self.patience)
        margin = np.asarray(stopped.predict(held.features, num_iteration=rounds, raw_score=True, num_threads=self.num_threads))
        return rounds, self.learn_more(margin, held)

    def score(self, features: Floats, group: Ints | None = None) -> Doubles:
        """Return float64 [n], the summed leaves.

        Raises:
            StateError: not fitted, or another number of features.
        """
        del group
        state = self.fitted()
        check_width(features, state.names)
        return state.forest.score(features)

    @property
    def features(self) -> tuple[str, ...]:
        """Return the features it reads, in the order of the matrix."""
        return self.fitted().names

    @property
    def importance(self) -> dict[str, float]:
        """Return the share of each feature in the total split gain, largest first."""
        return self.fitted().gain

    @property
    def size(self) -> dict[str, int]:
        """Return the number of trees."""
        return {"trees": self.fitted().n_trees}

    def fitted(self) -> Fitted:
        """Return what was learnt.

        Raises:
            StateError: nothing was.
        """
        if self.state is None:
            raise StateError(self.name, found="not fitted", allowed="a fitted ranker", hint="call fit first")
        return self.state

    def dump(self) -> dict[str, bytes]:
        """Return the model, the importance of its features, and what else was learnt."""
        state = self.fitted()
        # A list keeps the order, which canonical JSON would sort away.
        ranked = [{"feature": name, "gain": share} for name, share in state.gain.items()]
        return {MODEL_FILE: state.text.encode(), IMPORTANCE_FILE: publish.to_json(ranked).encode(), **dict(state.extras)}

    def restore(self, files: Mapping[str, bytes], names: tuple[str, ...]) -> Self:
        """Return a copy with the state that `dump` wrote.

        Raises:
            StateError: a file is missing or holds something else.
        """
        try:
            gain = {entry["feature"]: float(entry["gain"]) for entry in json.loads(files[IMPORTANCE_FILE])}
            text = files[MODEL_FILE].decode()
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(self.name, found=f"{type(error).__name__}: {error}", allowed="the files of saved trees") from error
        extras = tuple((name, content) for name, content in sorted(files.items()) if name not in {MODEL_FILE, IMPORTANCE_FILE})
        return replace(self, state=parse(text, names, gain, extras))


def parse(text: str, names: tuple[str, ...], gain: dict[str, float], extras: tuple[tuple[str, bytes], ...] = ()) -> Fitted:
    """Return the fitted state of a model text that is known to be intact."""
    return Fitted(text, names, gain, Forest.of(lightgbm.Booster(model_str=text), text=text), extras)


def monotone(names: tuple[str, ...], increasing: tuple[str, ...], decreasing: tuple[str, ...]) -> list[int]:
    """Return 1, -1 or 0 for each feature, as some pattern asks.

    Raises:
        StateError: a pattern fits no feature, or a feature is to rise and to fall.
    """
    for pattern in (*increasing, *decreasing):
        if not any(fnmatchcase(name, pattern) for name in names):
            raise StateError(
                "monotone constraint", found=f"{pattern!r} fits no feature", allowed=f"a pattern of {', '.join(names)}",
                hint="see ranking.parameters in the settings",
            )  # fmt: skip
    up, down = (
        np.array([any(fnmatchcase(name, pattern) for pattern in patterns) for name in names], np.int8)
        for patterns in (increasing, decreasing)
    )
    if both := [name for name, rises, falls in zip(names, up, down, strict=True) if rises and falls]:
        raise StateError("monotone constraint", found=f"{both} to rise and to fall", allowed="one of the two")
    return [int(sign) for sign in up - down]


def graded(gain: Floats) -> tuple[Floats, list[float]]:
    """Return gains as LightGBM wants them: small integers float32 [n], and the gain of each integer, 0 among them."""
    grades, place = np.unique(np.append(gain, np.float32(0)), return_inverse=True)
    return place[:-1].astype(np.float32), [float(grade) for grade in grades]
