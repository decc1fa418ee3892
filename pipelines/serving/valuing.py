"""What another policy would have earned, from the impression log: rows, rewards and the policy's probabilities, for `evaluation.off_policy`.

A row is an item at its place of an answer whose propensities are known: rung `full`, nothing moved after the draw. A policy is

    a file           with what probability it shows an item at a place of a request that was logged: request_id, rank, item_id, probability
                     (Parquet or CSV); places that it does not speak of are left out, items that it does not name are never shown there
    no exploration   the same lists with nothing drawn: what a draw put at a place is never shown, what stood there otherwise always is

The model of the reward (DR) is a place's rate times an item's lift, shrunk towards 1; fitted on the users of one half, used on the other.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines import columns as c
from pipelines import config
from pipelines.config import Home
from pipelines.errors import NotEnoughData, StateError
from pipelines.evaluation import off_policy
from pipelines.evaluation.off_policy import Valuation
from pipelines.lake import outcomes
from pipelines.lake.engine import quoted
from pipelines.ranking.newcomers import SOURCE
from pipelines.serving.request import FULL
from pipelines.window import Window

Doubles: TypeAlias = npt.NDArray[np.float64]
Columns: TypeAlias = dict[str, npt.NDArray[Any]]

REWARDS: Final = {"clicks": "clicked", "purchases": "purchased", "revenue": "revenue"}
POLICY: Final = (c.REQUEST_ID, c.RANK, c.ITEM_ID, "probability")
PRIOR: Final = 5.0  # expected rewards of a place's mean, that an item's lift is shrunk by


@dataclass(frozen=True)
class Read:
    """A valuation, and what of the log it rests on.

    Attributes:
        left_out: rows of the window's surface that are not in it, by reason.
    """

    valuation: Valuation
    left_out: dict[str, int]

    def record(self) -> dict[str, Any]:
        """Return everything for machines; what was refused is null."""

        def clean(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: clean(one) for name, one in value.items()}
            return None if isinstance(value, float) and not np.isfinite(value) else value

        said: dict[str, Any] = clean(asdict(self.valuation))
        return said | {"refused": list(self.valuation.refused), "left_out": self.left_out}


def read(
    home: Home, window: Window, *, policy: Path | None, surface: str = "home", reward: str = "clicks", clip: float | None = None
) -> Read:
    """Return what a policy would have earned a place in a window.

    Args:
        policy: its file; None: no exploration.
        reward: one of `REWARDS`.

    Raises:
        StateError: the reward is not known, or the file is no policy.
        NotEnoughData: no row of the window can be used.
    """
    if reward not in REWARDS:
        raise StateError("--reward", found=reward, allowed=", ".join(REWARDS))
    with outcomes.connect(home, window, config.load(home).impressions.attribution_hours) as engine:
        engine.execute(
            f"""CREATE TEMP TABLE shown AS SELECT {c.REQUEST_ID}, {c.USER_ID}, {c.RANK}, {c.ITEM_ID}, {c.PROPENSITY}, {c.RUNG},
                {REWARDS[reward]}::DOUBLE AS reward, list_contains({c.SOURCES}, '{SOURCE}') AS drawn
            FROM outcomes WHERE {c.SURFACE} = $surface""",
            {"surface": surface},
        )
        wanted = (
            _file(engine, policy) if policy is not None else "CREATE TEMP VIEW wanted AS SELECT *, (NOT drawn)::DOUBLE AS pi FROM shown"
        )
        engine.execute(wanted)
        known = f"{c.RUNG} = '{FULL}' AND {c.PROPENSITY} IS NOT NULL"
        whole, unknown, unasked = engine.execute(
            f"SELECT count(*), count(*) FILTER (NOT coalesce({known}, false)), count(*) FILTER ({known} AND pi IS NULL) FROM wanted"
        ).fetchall()[0]
        rows: Columns = engine.execute(
            f"SELECT * FROM wanted WHERE {known} AND pi IS NOT NULL ORDER BY {c.REQUEST_ID}, {c.RANK}, {c.ITEM_ID}"
        ).fetchnumpy()
        if not len(rows["reward"]):
            raise NotEnoughData(
                "off-policy value", found=f"none of {whole:,} impressions of surface {surface}", allowed=f"rung {FULL}, a known propensity",
                hint="`reloop impressions` lands what the service has logged; the policy's file must name requests of the window",
            )  # fmt: skip
        model = _expected(engine, rows, asked=policy is not None)
    found = off_policy.value(
        rows["reward"], rows["pi"], rows[c.PROPENSITY], users=np.asarray(rows[c.USER_ID], dtype=str), model=model, clip=clip
    )
    return Read(found, {"propensity not known": int(unknown), "the policy does not speak of its place": int(unasked)})


def _file(engine: duckdb.DuckDBPyConnection, policy: Path) -> str:
    """Read a policy into the table `policy`; return what defines `wanted`, null where the policy does not speak of a place.

    Raises:
        StateError: it cannot be read, lacks a column, or holds what is no probability.
    """
    allowed = f"Parquet or CSV with {', '.join(POLICY)}; probabilities 0 to 1, at most 1 in all at a place, an item once"
    reader = "read_parquet" if policy.suffix == ".parquet" else "read_csv_auto"
    try:
        engine.execute(
            f"""CREATE TEMP TABLE policy AS SELECT {c.REQUEST_ID}::VARCHAR AS {c.REQUEST_ID}, {c.RANK}::INTEGER AS {c.RANK},
                {c.ITEM_ID}::VARCHAR AS {c.ITEM_ID}, probability::DOUBLE AS pi FROM {reader}({quoted(str(policy))})"""
        )
    except duckdb.Error as error:
        raise StateError(str(policy), found=str(error).partition("\n")[0], allowed=allowed) from error
    (wrong,) = engine.execute(
        f"""SELECT (SELECT count(*) FROM policy WHERE NOT coalesce(isfinite(pi) AND pi BETWEEN 0 AND 1, false) OR {c.REQUEST_ID} IS NULL
                OR {c.RANK} IS NULL OR {c.ITEM_ID} IS NULL)
            + (SELECT count(*) FROM (FROM policy SELECT 1 GROUP BY {c.REQUEST_ID}, {c.RANK}
                HAVING sum(pi) > 1 + 1e-6 OR count(DISTINCT {c.ITEM_ID}) < count(*)))"""
    ).fetchall()[0]
    if wrong:
        raise StateError(str(policy), found=f"{wrong:,} rows or places that are none", allowed=allowed)
    return f"""CREATE TEMP VIEW wanted AS SELECT shown.*, CASE WHEN place.{c.RANK} IS NOT NULL THEN coalesce(policy.pi, 0) END AS pi
        FROM shown LEFT JOIN policy USING ({c.REQUEST_ID}, {c.RANK}, {c.ITEM_ID})
        LEFT JOIN (SELECT DISTINCT {c.REQUEST_ID}, {c.RANK} FROM policy) AS place USING ({c.REQUEST_ID}, {c.RANK})"""


def _expected(engine: duckdb.DuckDBPyConnection, rows: Columns, *, asked: bool) -> tuple[Doubles, Doubles]:
    """Return float64 [n], [n]: expected rewards of what the policy would show at each row's place, and of what was shown.

    Without a file nobody knows what would stand where something was drawn: a place's mean is expected of everything.
    """
    _, user = np.unique(np.asarray(rows[c.USER_ID], dtype=str), return_inverse=True)
    half, reward, rank = user.ravel() % 2, rows["reward"].astype(np.float64), rows[c.RANK].astype(np.int64)
    names, item = np.unique(np.asarray(rows[c.ITEM_ID], dtype=str), return_inverse=True)
    place = np.zeros((2, int(rank.max()) + 1))
    lift = np.ones((2, len(names)))
    for fold in (0, 1):
        fit = half != fold
        overall = float(reward[fit].mean()) if fit.any() else 0.0
        count = np.bincount(rank[fit], minlength=place.shape[1])
        earned = np.bincount(rank[fit], reward[fit], minlength=place.shape[1])
        place[fold] = (earned + PRIOR * overall) / (count + PRIOR)
        if asked:
            due = np.bincount(item[fit], place[fold][rank[fit]], minlength=len(names))
            lift[fold] = (np.bincount(item[fit], reward[fit], minlength=len(names)) + PRIOR) / (due + PRIOR)
    shown = place[half, rank] * lift[half, item.ravel()]
    if not asked:
        return shown.copy(), shown
    # What the policy would show there: each item that it names, by its probability; of one that was never shown the place's mean is expected.
    lifts = {"item_id": names, "lift_0": lift[0], "lift_1": lift[1]}
    engine.register("lifts", pa.table({name: pa.array(values.tolist()) for name, values in lifts.items()}))
    told = engine.execute(
        f"""SELECT {c.REQUEST_ID}, {c.RANK}, sum(pi * coalesce(lift_0, 1)) AS lift_0, sum(pi * coalesce(lift_1, 1)) AS lift_1
        FROM policy LEFT JOIN lifts USING ({c.ITEM_ID}) GROUP BY ALL"""
    ).fetchnumpy()
    at = {key: row for row, key in enumerate(zip(told[c.REQUEST_ID].tolist(), told[c.RANK].tolist(), strict=True))}
    row = np.array([at[key] for key in zip(rows[c.REQUEST_ID].tolist(), rank.tolist(), strict=True)])
    lifted = np.where(half == 0, told["lift_0"][row], told["lift_1"][row])
    return np.asarray(place[half, rank] * lifted), shown
