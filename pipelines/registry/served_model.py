"""The registered model as code: MLflow runs this file to load a bundle, so nothing is ever unpickled.

Asked for users, it answers with the lists that the gate judged: histories and features come from the
state folder that RELOOP_HOME names, up to the moment `as_of`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd

from pipelines import columns as c
from pipelines.config import Home
from pipelines.ranking import two_stage
from pipelines.ranking.two_stage import TwoStage
from pipelines.registry import bundle
from pipelines.window import utc


class Served(mlflow.pyfunc.PythonModel):  # type: ignore[misc]  # mlflow ships no types
    """A bundle behind MLflow's predict."""

    model: TwoStage

    def load_context(self, context: Any) -> None:
        """Check and load the bundle that was registered.

        Raises:
            StateError: any byte differs from what was published, or it is not signed in this environment.
        """
        self.model = bundle.load_folder(Home.from_environment(), Path(context.artifacts["bundle"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:  # noqa: ARG002 - MLflow's signature
        """Return one row a recommended item: user_id, rank, item_id, score, sources.

        Args:
            model_input: a column user_id; a user nobody knows gets what the sources propose to everyone.
            params: `as_of` (ISO 8601), `k`.
        """
        asked = params or {}
        users = np.asarray(model_input[c.USER_ID].astype(str), dtype=np.str_)
        found = two_stage.rank_users(Home.from_environment(), self.model, users, utc(asked["as_of"]), int(asked["k"]))
        rows = [
            {
                c.USER_ID: str(user),
                c.RANK: place + 1,
                c.ITEM_ID: str(item),
                c.SCORE: float(found.score[row, place]),
                c.SOURCES: ",".join(found.sources_of(row, place)),
            }
            for row, user in enumerate(found.user_ids)
            for place, item in enumerate(found.item_ids[row])
            if item
        ]
        return pd.DataFrame(rows, columns=[c.USER_ID, c.RANK, c.ITEM_ID, c.SCORE, c.SOURCES])


mlflow.models.set_model(Served())
