"""What the drift check says of a champion that a policy might have had: the real check, on the real marts of the day.

Each answer is kept under the digests and settings it was made of: a replay that was killed asks nothing twice.

    reports/replay/drift/<digest of the question>.json
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from pipelines import config, publish
from pipelines.config import Home
from pipelines.monitoring import drift
from pipelines.replay.live import Tell, silent
from pipelines.window import floor_day


def drifted(home: Home, bundles: Mapping[datetime, str], tell: Tell = silent) -> Callable[[datetime, datetime], str | None]:
    """Return what tells why the world has moved away from a champion at a moment, None if it has not."""
    settings = config.load(home)

    def answer(champion: datetime, moment: datetime) -> str | None:
        question = [bundles[champion], moment, settings.drift.model_dump(mode="json")]
        name = hashlib.sha256(json.dumps(question, default=str, sort_keys=True).encode()).hexdigest()
        file = home.reports / "replay" / "drift" / f"{name}.json"
        if not file.is_file():
            tell(f"drift from the champion of {champion:%Y-%m-%d}", moment)
            found = drift.measure(home, bundles[champion], floor_day(moment), settings.drift)
            publish.write_json(file, {"verdict": found.verdict, "reasons": list(found.reasons)})
        said: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return "; ".join(said["reasons"]) if said["verdict"] == drift.DRIFT else None

    return answer
