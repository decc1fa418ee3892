"""What is wrong with the data itself: what validation refused, and what slipped past it into the lake.

Validation judges a batch as it comes in and blocks the worst; what it only warned of, or had no history to tell, is looked for here
in the days before a training: one pass of DuckDB over the last days against the four weeks before them. A fault whose rows were
kept out of the lake is told; it blocks a training only where so much was refused that what is left misrepresents the day.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date, datetime, timedelta
from statistics import median
from typing import Any, Final

import duckdb

from pipelines import columns as c
from pipelines import config, cycle, lake
from pipelines.config import Home, Settings
from pipelines.window import DAY, Window, floor_day, utc

HISTORY_DAYS: Final = 28
MIN_ROWS: Final = 50  # of a usual day; of fewer no share is told
MIN_ITEMS: Final = 20  # sold both now and before, to compare prices
TOGETHER: Final = 0.5  # of the items whose price moved by the same factor, within a tenth: a unit, not a sale
EARNING: Final = f"{c.EVENT_TYPE} IN ('{c.PURCHASE}', '{c.RATING}')"
SUBJECTS: Final = {c.VALUE: EARNING, c.QUANTITY: EARNING, c.SESSION_ID: "true", c.DEVICE: "true"}
DESCRIBED: Final = {"items": (c.CATEGORY, c.BRAND, c.PRICE), "users": (c.COUNTRY, c.AGE_BAND)}

SCHEMA_CHANGE: Final = "schema change"
NULL_BURST: Final = "null burst"
UNIT_CHANGE: Final = "unit change"
VOLUME_DROP: Final = "volume drop"
UPSTREAM_GAP: Final = "upstream gap"
DUPLICATES: Final = "duplicates"
BOT_BURST: Final = "bot burst"
WRONG_CLOCK: Final = "wrong clock"
NEW_VALUE: Final = "new value"
REFUSED: Final = "refused rows"
# What a sentence of a failed expectation, or of a refused row, says happened; the first that fits. A test holds them to the suites.
WORDS: Final = (
    ("' is missing, ", SCHEMA_CHANGE),
    (" is new, column ", NEW_VALUE),
    ("is not one of", NEW_VALUE),
    ("times off what", UNIT_CHANGE),
    ("of the usual", VOLUME_DROP),
    ("the batch is empty", VOLUME_DROP),
    ("repeat an event_id", DUPLICATES),
    ("minutes after received_at", WRONG_CLOCK),
    ("days after event_at", WRONG_CLOCK),
    ("is not between 1990", WRONG_CLOCK),
    ("is null in", NULL_BURST),
    ("is missing", NULL_BURST),
)


@dataclass(frozen=True)
class Fault:
    """One fault of the data.

    Attributes:
        cause: one of the constants above.
        day: of the rows; None where it is of a whole batch.
        column: which column, or what of a row.
        rows, of: how many rows it hit, and of how many.
        blocks: whether a training on this data must wait.
        says: the sentence for people; names column and count.
    """

    cause: str
    day: date | None
    column: str
    rows: int
    of: int
    blocks: bool
    says: str

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self) | {"day": None if self.day is None else self.day.isoformat()}


def cause_of(sentence: str) -> str:
    """Return what a sentence of validation is about."""
    return next((cause for words, cause in WORDS if words in sentence), REFUSED)


def found(home: Home, as_of: datetime) -> tuple[Fault, ...]:
    """Return every fault of the data that a training for `as_of` would learn from, or would have to do without; oldest first."""
    settings, end = config.load(home), utc(as_of)
    days = Window(floor_day(end) - settings.triage.fault_days * DAY, end)
    faults = [*_blocked(home, end), *_refused(home, days, settings)]
    with lake.connect(home, before=end) as db:
        # Of text nothing but its presence is asked: a month of a large shop then fits in memory.
        there = ", ".join(f"CASE WHEN {name} IS NOT NULL THEN true END AS {name}" for name in (c.SESSION_ID, c.DEVICE))
        names = f"{c.USER_ID}, {c.ITEM_ID}, {c.EVENT_TYPE}, {c.VALUE}, {c.QUANTITY}, {c.RECEIVED_AT}"
        db.execute(
            f"CREATE TEMP TABLE recent AS SELECT {names}, {there}, CAST({c.EVENT_AT} AS DATE) AS day, {c.EVENT_AT} >= ? AS now"
            f" FROM events WHERE {c.EVENT_AT} >= ?",
            [days.start, days.start - HISTORY_DAYS * DAY],
        )
        faults += [*_by_day(db, days, settings), *_bots(db, settings), *_unit_prices(db, settings), *_descriptions(db, days, settings)]
    accepted = settings.triage.accept
    return tuple(
        sorted((unless_accepted(fault, accepted) for fault in faults), key=lambda fault: (str(fault.day), fault.cause, fault.column))
    )


def unless_accepted(fault: Fault, accepted: tuple[str, ...]) -> Fault:
    """Return a fault, told but no longer blocking where a person accepted its cause, or its cause on its day."""
    if not fault.blocks or not {fault.cause, f"{fault.cause}@{fault.day}"} & set(accepted):
        return fault
    return Fault(fault.cause, fault.day, fault.column, fault.rows, fault.of, blocks=False, says=f"{fault.says} (accepted)")


def _blocked(home: Home, as_of: datetime) -> Iterator[Fault]:
    """Yield what validation blocked in this cycle, and what it warned of that is another scale of money."""
    for record in cycle.records(home, as_of, "validation"):
        rows = record.get("tables", {}).get("events", {}).get("rows", {}).get("read", 0)
        for sentence in record.get("failed", {}).get("critical", ()):
            yield Fault(cause_of(sentence), None, "", rows, rows, blocks=True, says=f"batch {record['key']} was blocked: {sentence}")


def _refused(home: Home, days: Window, settings: Settings) -> Iterator[Fault]:
    """Yield what the landings of these days kept out, where it is more than earlier landings did."""
    reports = [report for report in lake.reports(home) if report.window and report.rows["read"]]
    earlier = [report for report in reports if utc(report.window[1]) <= days.start][-8:]
    for report in reports:
        start, end = utc(report.window[0]), utc(report.window[1])
        if end <= days.start or start >= days.end:
            continue
        read, refused = report.rows["read"], report.rows["quarantined"]
        usual = median([one.rows["quarantined"] / one.rows["read"] for one in earlier]) if earlier else 0.0
        for reason, rows in sorted(report.reasons.items()):
            known = median([one.reasons.get(reason, 0) / one.rows["read"] for one in earlier]) if earlier else 0.0
            if rows / read - known < min(settings.triage.min_fault_share, settings.triage.max_lost_share) / 10:
                continue
            blocks = bool(earlier) and refused / read - usual > settings.triage.max_lost_share
            said = f"{rows} of {read} rows of batch {report.batch_id} ({rows / read:.1%}) were kept out: {reason}"
            yield Fault(cause_of(reason), None, reason.split()[0], rows, read, blocks=blocks, says=said)
        if (twice := report.rows["duplicates"]) / read >= settings.triage.min_fault_share:
            said = f"{twice} of {read} rows of batch {report.batch_id} ({twice / read:.1%}) came twice, column {c.EVENT_ID}; one of each was taken"
            yield Fault(DUPLICATES, None, c.EVENT_ID, twice, read, blocks=False, says=said)


def _by_day(db: duckdb.DuckDBPyConnection, days: Window, settings: Settings) -> Iterator[Fault]:
    """Yield days with too few events or none, with too many missing values, and silence at the end."""
    nulls = ", ".join(f"count(*) FILTER ({among} AND {name} IS NULL), count(*) FILTER ({among})" for name, among in SUBJECTS.items())
    rows = {day: (n, counts) for day, n, *counts in db.execute(f"SELECT day, count(*), {nulls} FROM recent GROUP BY day").fetchall()}
    wanted = [day for day in days.days() if floor_day(utc(day)) + DAY <= days.end]
    if settings.validation.min_volume_share > 0:  # else history, whose quiet days are facts
        yield from _volumes(db, {day: n for day, (n, _) in rows.items()}, wanted, days, settings)
    before = [counts for day, (_, counts) in rows.items() if utc(day) < days.start]
    for place, name in enumerate(SUBJECTS):
        known = sum(counts[2 * place + 1] for counts in before)
        usual = sum(counts[2 * place] for counts in before) / known if known else None
        for day in wanted:
            missing, of = rows[day][1][2 * place : 2 * place + 2] if day in rows else (0, 0)
            if usual is not None and of >= MIN_ROWS and missing / of - usual > settings.drift.max_null_rise:
                said = f"events: column '{name}' is null in {missing} of {of} rows ({missing / of:.0%}) on {day}; usual {usual:.0%}"
                yield Fault(NULL_BURST, day, name, missing, of, blocks=True, says=said)


def _volumes(db: duckdb.DuckDBPyConnection, rows: dict[date, int], wanted: list[date], days: Window, settings: Settings) -> Iterator[Fault]:
    weekdays: dict[int, list[int]] = defaultdict(list)
    for day, n in rows.items():
        if utc(day) < days.start:
            weekdays[day.isoweekday()].append(n)
    usual = {weekday: median(found) for weekday, found in weekdays.items() if len(found) >= 2}
    for day in wanted:
        expected, n = usual.get(day.isoweekday(), 0.0), rows.get(day, 0)
        if expected >= MIN_ROWS and n < settings.validation.min_volume_share * expected:
            said = f"events: {n} rows with {c.EVENT_AT} on {day}, {n / expected:.0%} of the usual {expected:.0f}"
            yield Fault(VOLUME_DROP if n else UPSTREAM_GAP, day, c.EVENT_AT, n, round(expected), blocks=True, says=said)
    (last,) = db.execute(f"SELECT epoch_us(max({c.RECEIVED_AT})) FROM recent").fetchone() or (None,)
    newest = days.start - HISTORY_DAYS * DAY if last is None else utc("1970-01-01") + timedelta(microseconds=last)
    hours = (days.end - newest) / timedelta(hours=1)
    if usual and median(usual.values()) >= MIN_ROWS and hours > settings.triage.max_gap_hours:
        said = f"events: nothing was received for {hours:.0f} hours before {days.end:%Y-%m-%d %H:%M}, column {c.RECEIVED_AT}; 0 rows"
        yield Fault(UPSTREAM_GAP, newest.date(), c.RECEIVED_AT, 0, 0, blocks=True, says=said)


def _bots(db: duckdb.DuckDBPyConnection, settings: Settings) -> Iterator[Fault]:
    found = db.execute(
        """SELECT day, count(*) AS users, sum(n)::BIGINT, any_value(total)::BIGINT FROM (
            SELECT day, user_id, count(*) AS n, sum(count(*)) OVER (PARTITION BY day) AS total FROM recent WHERE now GROUP BY day, user_id
        ) WHERE n >= ? GROUP BY day ORDER BY day""",
        [settings.triage.bot_events],
    ).fetchall()
    for day, users, rows, of in found:
        if rows / of >= settings.triage.min_fault_share:
            said = f"events: column '{c.USER_ID}' has {users} users with {settings.triage.bot_events} events or more on {day}, {rows} of {of} rows"
            yield Fault(BOT_BURST, day, c.USER_ID, rows, of, blocks=True, says=said)


def _unit_prices(db: duckdb.DuckDBPyConnection, settings: Settings) -> Iterator[Fault]:
    price = f"{c.VALUE} / coalesce(nullif({c.QUANTITY}, 0), 1)"
    sold = f"{c.EVENT_TYPE} = '{c.PURCHASE}' AND {c.VALUE} > 0"
    yield from _prices(
        db,
        settings,
        c.VALUE,
        f"SELECT day, {c.ITEM_ID}, median({price}) AS price, count(*) AS rows FROM recent WHERE now AND {sold} GROUP BY ALL",
        f"SELECT {c.ITEM_ID}, median({price}) AS price FROM recent WHERE NOT now AND {sold} GROUP BY ALL",
    )


def _prices(db: duckdb.DuckDBPyConnection, settings: Settings, column: str, now: str, before: str) -> Iterator[Fault]:
    """Yield days on which the prices of the same items moved together by a factor."""
    found = db.execute(
        f"""WITH ratios AS (
            SELECT day, rows, ln(now.price / before.price) AS ratio FROM ({now}) AS now JOIN ({before}) AS before USING ({c.ITEM_ID})
        ), centres AS (SELECT day, median(ratio) AS centre FROM ratios GROUP BY day)
        SELECT ratios.day, count(*), sum(rows)::BIGINT, exp(any_value(centre)), avg((abs(ratio - centre) < ln(1.1))::DOUBLE)
        FROM ratios JOIN centres ON ratios.day IS NOT DISTINCT FROM centres.day GROUP BY ratios.day ORDER BY ratios.day"""
    ).fetchall()
    for day, items, rows, factor, together in found:
        if items >= MIN_ITEMS and together >= TOGETHER and max(factor, 1 / factor) >= settings.triage.price_factor:
            said = f"column '{column}' is {factor:.3g} times what the same {items} items cost before, {rows} rows on {day}: another unit or currency"
            yield Fault(UNIT_CHANGE, day, column, rows, rows, blocks=True, says=said)


def _descriptions(db: duckdb.DuckDBPyConnection, days: Window, settings: Settings) -> Iterator[Fault]:
    """Yield what newly learnt versions of items and users lack, or have on another scale."""
    learnt = f"coalesce({c.RECEIVED_AT}, {c.VALID_FROM})"
    for table, names in DESCRIBED.items():
        parts = ", ".join(f"count(*) FILTER ({name} IS NULL)" for name in names)
        found = {
            bool(now): counts
            for now, *counts in db.execute(
                f"SELECT {learnt} >= ? AS now, count(*), {parts} FROM {table} GROUP BY 1", [days.start]
            ).fetchall()
        }
        if len(found) < 2 or min(counts[0] for counts in found.values()) < MIN_ROWS:
            continue
        for place, name in enumerate(names, start=1):
            usual, share = (found[now][place] / found[now][0] for now in (False, True))
            if share - usual > settings.drift.max_null_rise:
                rows, of = found[True][place], found[True][0]
                said = f"{table}: column '{name}' is null in {rows} of {of} new versions ({share:.0%}); usual {usual:.0%}"
                yield Fault(NULL_BURST, None, name, rows, of, blocks=True, says=said)
    newest = f"FROM items WHERE {c.PRICE} > 0 AND {learnt}"
    start = f"TIMESTAMPTZ '{days.start.isoformat()}'"
    yield from _prices(
        db,
        settings,
        c.PRICE,
        f"SELECT NULL::DATE AS day, {c.ITEM_ID}, median({c.PRICE}) AS price, count(*) AS rows {newest} >= {start} GROUP BY ALL",
        f"SELECT {c.ITEM_ID}, arg_max({c.PRICE}, {learnt}) AS price {newest} < {start} GROUP BY ALL",
    )
