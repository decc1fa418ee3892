"""What a board is made on: a state folder of its own, filled by the real ingest, and the moment to judge at.

So the board sees the events that the loop would see: duplicates counted once, refused rows in quarantine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from pipelines import lake, publish
from pipelines.config import Home
from pipelines.errors import ReloopError
from pipelines.lake.ledger import FATES
from pipelines.sources import plan, reading
from pipelines.sources.request import Request, Source, World
from pipelines.validation import checkpoint
from pipelines.window import DAY, Window, floor_day, utc

LAKE: Final = "lake"  # the name of the state folder's own lake among the data sets
BATCH_DAYS: Final = 28


@dataclass(frozen=True)
class DataSet:
    """A source, how its windows are cut, and where its file lies.

    Attributes:
        file: below a folder that holds the public data sets; "" for a simulated shop.
        horizon_days: length of the validation and of the test window: a week holds too few of a small set's users to tell sources apart.
        days: of a simulated shop, which never ends.
    """

    source: Source
    file: str = ""
    horizon_days: int = 28
    world: World = field(default_factory=World)
    days: int = 70


SHOP: Final = {"users": 6000, "items": 2000, "events_per_day": 9000}

DATA_SETS: Final[dict[str, DataSet]] = {
    "online-retail": DataSet(Source.ONLINE_RETAIL, "online-retail/online-retail-dataset.csv.gz"),
    "retailrocket": DataSet(Source.RETAILROCKET, "retailrocket-sample/events.csv.gz"),
    "movielens-100k": DataSet(Source.MOVIELENS, "movielens-100k"),
    # People go by their own taste, and nothing is shown more because it was seen more; the usual is 1 and 1.
    "simulated-taste": DataSet(Source.SIMULATED, world=World(**SHOP, taste=2.0, feedback=0.0), horizon_days=7),
    # Taste hardly counts, what was seen is shown, and four of five habits give way to the best sellers.
    "simulated-popularity": DataSet(Source.SIMULATED, world=World(**SHOP, taste=0.1, feedback=2.0, herd=0.8), horizon_days=7),
    "simulated": DataSet(Source.SIMULATED, world=World(**SHOP), horizon_days=7),
}


def named(name: str) -> DataSet:
    """Return a data set by name.

    Raises:
        ReloopError: there is none of that name.
    """
    if name not in DATA_SETS:
        raise ReloopError("data set", found=repr(name), allowed=f"one of {[*DATA_SETS, LAKE]}")
    return DATA_SETS[name]


def check(name: str, path: Path | None, as_of: str | None) -> None:
    """Refuse what would be ignored.

    Raises:
        ReloopError: no such data set; a path for one that has no file, or a moment for one that has its own.
    """
    if (name == LAKE or not named(name).file) and path is not None:
        files = [other for other, known in DATA_SETS.items() if known.file]
        raise ReloopError(f"--path for data set {name}", found=str(path), allowed=f"none; files have {', '.join(files)}")
    if name != LAKE and as_of is not None:
        raise ReloopError(
            f"--as-of for data set {name}",
            found=as_of,
            allowed=f"none: it is judged at its end; {LAKE!r} has a moment",
            hint=f"--dataset {LAKE}",
        )


def prepare(root: Path, name: str, path: Path | None, tell: Callable[[str], None] = lambda _: None) -> tuple[Home, datetime]:
    """Return the state folder of a data set, ingested to its end, and the moment after its last day.

    What is ingested already is not read again; a second process waits while it is.

    Args:
        root: where such folders lie; each request has its own.
        path: of the source's file or folder; None for a simulated shop.
        tell: is told what is being done.

    Raises:
        ReloopError: no such data set, or it needs a path.
        SourceError: the file cannot be read.
        ValidationBlocked: a batch failed a critical check.
    """
    chosen = named(name)
    if path is None and chosen.file:
        raise ReloopError(f"data set {name}", found="no path", allowed="its file or folder", hint=f"--path FOLDER/{chosen.file}")
    request = Request(source=chosen.source, path=path if chosen.file else None, world=chosen.world)
    asked = hashlib.sha256(f"{request.model_dump_json()} {chosen.days} {_stamp(path)}".encode()).hexdigest()[:8]
    home = Home(root / f"{name}-{asked}")
    settings = home.root / "reloop.toml"
    knobs = f"[training]\nhorizon_days = {chosen.horizon_days}\nranker_windows = 1\nmax_users_per_window = 1000000\n"
    if not settings.is_file() or settings.read_text(encoding="utf-8") != knobs:
        publish.write_text(settings, knobs)
    with publish.locked(root / f".{home.root.name}.lock"):
        whole = plan.span(home, request)
        end = min(whole.end, whole.start + timedelta(days=chosen.days)) if chosen.source is Source.SIMULATED else whole.end
        for window in plan.windows(home, request, end=end, batch_days=BATCH_DAYS):
            tell(f"{name}: ingesting {window}")
            _ingest(home, request, window)
    return home, end


def _ingest(home: Home, request: Request, window: Window) -> None:
    batch = reading.stage_batch(home, request, window)
    checkpoint.validate_batch(home, window.end, batch)
    lake.land(home, window.end, batch)


def _stamp(path: Path | None) -> Any:
    """Return what tells one file under a path from a later one."""
    return None if path is None or not path.is_file() else [path.stat().st_size, path.stat().st_mtime_ns]


def own(home: Home, as_of: str | None) -> tuple[Home, datetime]:
    """Return the state folder itself, and the moment asked for, by default the end of its lake's last day.

    Raises:
        ReloopError: the lake is empty.
    """
    days = lake.days(home)
    if not days:
        raise ReloopError(f"lake at {home.lake}", found="no day", allowed="a lake with events", hint="run `reloop ingest`")
    return home, utc(as_of) if as_of else floor_day(utc(days[-1])) + DAY


def ingested(home: Home) -> dict[str, int]:
    """Return the events of a lake by fate: read, accepted, quarantined, duplicates."""
    reports = lake.reports(home)
    return {fate: sum(report.rows.get(fate, 0) for report in reports) for fate in FATES}
