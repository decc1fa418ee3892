"""From the impression log into the lake: staged, judged, landed, forgotten; killed anywhere and run again it ends the same."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pipelines import publish
from pipelines.config import Home
from pipelines.lake import impressions
from pipelines.sources import impression_log
from pipelines.validation import impressions as judge


def collect(home: Home, as_of: datetime) -> list[dict[str, Any]]:
    """Land every closed segment of the log, and return what each batch brought. A second process waits.

    Raises:
        ValidationBlocked: a batch is not what the service writes; it stays where it is, and nothing of it has landed.
    """
    done = []
    with publish.locked(home.root / "impressions" / ".collect.lock"):
        while (batch_id := impression_log.stage(home)) is not None:
            if impressions.landed(home, batch_id) is None:
                judge.validate(home, as_of, batch_id)
            done.append(impressions.land(home, as_of, batch_id))
            impression_log.clear(home, batch_id)
    return done
