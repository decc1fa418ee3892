"""Measurements of a judged batch, taken over every row by DuckDB: what the expectations are held against.

A measurement is one line: what was measured (`subject`), when (`day`, or "all"), on how many rows,
and one number in the column of its check. Days are those on which rows were received, so that a
fault of one day shows in a batch of many. "Usual" is what the lake's last four weeks and the
ledger's last landings had; without history a check that needs it is left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from statistics import median
from typing import Any, Final

import duckdb

from pipelines import columns as c
from pipelines import tables
from pipelines.lake import LandingReport
from pipelines.lake.engine import quoted
from pipelines.validation.judging import Accounts
from pipelines.validation.row_rules import UNKNOWN_TYPE
from pipelines.window import DAY, Window

HISTORY: Final = timedelta(days=28)
WHOLE: Final = "all"
MIN_ROWS: Final = 30  # a day or batch with fewer is not judged by its shares: they are noise
MIN_EXPECTED: Final = 50  # rows of a usual day below which its volume says nothing
MIN_ITEMS: Final = 20  # items sold both now and before, to compare their prices
ANY: Final = "any reason"
UNHEARD_OF: Final = 0.3  # what a reason's usual share is taken to be before there is history
OFF_SCALE: Final = 20.0  # a factor between prices of one item that is a unit, not a discount
AMOUNTS: Final = (c.VALUE, c.QUANTITY)
TIMELESS: Final = f"{c.RECEIVED_AT} IS NULL AND {c.EVENT_AT} IS NULL"
EARNING: Final = f"{c.EVENT_TYPE} IN ('{c.PURCHASE}', '{c.RATING}')"

Line = dict[str, Any]


@dataclass(frozen=True)
class Usual:
    """What earlier data was like; None or an empty mapping where there is none.

    Attributes:
        weekday_rows: ISO weekday -> median events of that weekday in the four weeks before.
        null_share: table -> column -> share of nulls.
        reason_share: primary reason, and `ANY` for all together -> median share of the rows of the
            last landings; None without landings.
    """

    weekday_rows: dict[int, float] = field(default_factory=dict)
    null_share: dict[str, dict[str, float]] = field(default_factory=dict)
    reason_share: dict[str, float] | None = None

    def reason(self, reason: str) -> float:
        """Return the share that a reason usually has."""
        return UNHEARD_OF if self.reason_share is None else self.reason_share.get(reason, 0.0)


def usual(lake: duckdb.DuckDBPyConnection, window: Window, batch_id: str, landings: Sequence[LandingReport]) -> Usual:
    """Return what the four weeks of the lake before `window`, and the landings of earlier windows, were like.

    Args:
        lake: a connection with the lake's views; gets the view `recent_events`.
    """
    since, start = (quoted(moment.isoformat()) for moment in (window.start - HISTORY, window.start))
    lake.execute(
        f"CREATE TEMP VIEW recent_events AS SELECT * FROM events WHERE {c.EVENT_AT} >= TIMESTAMPTZ {since} AND {c.EVENT_AT} < TIMESTAMPTZ {start}"
    )
    by_weekday: dict[int, list[int]] = defaultdict(list)
    for day, rows in lake.execute(f"SELECT CAST({c.EVENT_AT} AS DATE), count(*) FROM recent_events GROUP BY 1").fetchall():
        by_weekday[day.isoweekday()].append(rows)
    null_share = {
        name: shares
        for name, view in {"events": "recent_events", "items": "items", "users": "users"}.items()
        if (shares := _null_shares(lake, name, view, "true").get(WHOLE))
    }
    before = [
        report for report in landings if report.window and report.batch_id != batch_id and report.window[0] < window.start.isoformat()
    ]
    recent = sorted(before, key=lambda report: report.window)[-8:]
    of_landings = [
        {reason: n / report.rows["read"] for reason, n in {**report.reasons, ANY: report.rows["quarantined"]}.items()}
        for report in recent
        if report.rows["read"]
    ]
    reasons = {
        reason: median(share.get(reason, 0.0) for share in of_landings) for reason in sorted({r for share in of_landings for r in share})
    }
    return Usual(
        {weekday: median(rows) for weekday, rows in by_weekday.items() if len(rows) >= 2},
        {name: {column: share for column, (share, _, _) in found.items()} for name, found in null_share.items()},
        reasons if of_landings else None,
    )


def measure(
    engine: duckdb.DuckDBPyConnection,
    table: str,
    *,
    window: Window | None,
    accounts: Accounts,
    odd_columns: Mapping[str, Sequence[str]],
    known: Usual,
) -> list[Line]:
    """Return every measurement of one judged table; `engine` holds its views (`judging.define`)."""
    lines = [
        *_batch(table, accounts, _undated(engine) if table == "events" else (0, 0)),
        *_columns(table, odd_columns, accounts, known),
        *_nulls(engine, table, known),
    ]
    if table == "events":
        lines += [*_reasons(engine, known), *_prices(engine, _UNIT_PRICES, "value")]
        if window is not None:
            lines += _volume(engine, window, known)
    if table == "items":
        lines += _prices(engine, _LIST_PRICES, "price")
    return lines


def _undated(engine: duckdb.DuckDBPyConnection) -> tuple[int, int]:
    """Return how many rows have no time at all: all of them, and those in quarantine.

    A source's rows without a time all arrive with its first window, of which they are no share.
    """
    counts = [
        engine.execute(f"SELECT count(*) FROM {table} WHERE {TIMELESS}").fetchall() for table in ("staged_events", "quarantined_events")
    ]
    return counts[0][0][0], counts[1][0][0]


def _batch(table: str, accounts: Accounts, undated: tuple[int, int]) -> Iterator[Line]:
    read = accounts.rows["read"]
    yield {"subject": table, "day": WHOLE, "rows": read, "count": read, "row_count": float(read)}
    if (dated := read - undated[0]) >= MIN_ROWS:
        quarantined = accounts.rows["quarantined"] - undated[1]
        yield {"subject": "rows in quarantine", "day": WHOLE, "rows": dated, "count": quarantined, "quarantined_share": quarantined / dated}
    if read:
        yield {
            "subject": "rows that share a key and differ",
            "day": WHOLE,
            "rows": read,
            "count": accounts.conflicts,
            "conflicting_share": accounts.conflicts / read,
        }


def _columns(table: str, odd: Mapping[str, Sequence[str]], accounts: Accounts, known: Usual) -> Iterator[Line]:
    """Yield a line for every canonical column, and for every column that the source has beside them."""
    beside = ", ".join(repr(name) for name in odd.get("unknown", ()))
    usual_share = known.null_share.get(table, {})
    for column in tables.CANONICAL[table]:
        filled = not column.nullable or usual_share.get(column.name, 1.0) < 0.5
        gone = column.name in odd.get("missing", ())
        state = "present" if not gone else ("missing" if filled else "missing, never filled")
        yield {
            "subject": column.name,
            "day": WHOLE,
            "rows": accounts.rows["read"],
            "count": accounts.rows["read"] if gone else 0,
            "column": state,
            "beside": f"; the source now has {beside}" if beside else "",
        }
    for name in odd.get("unknown", ()):
        yield {"subject": name, "day": WHOLE, "rows": accounts.rows["read"], "count": accounts.rows["read"], "column": "unknown"}


def _nulls(engine: duckdb.DuckDBPyConnection, table: str, known: Usual) -> Iterator[Line]:
    before = known.null_share.get(table, {})
    day = f"CAST({c.RECEIVED_AT} AS DATE)" if table == "events" else "NULL"
    for when, shares in _null_shares(engine, table, f"accepted_{table}", day).items():
        for column, (share, nulls, rows) in shares.items():
            if column in before and rows >= MIN_ROWS:
                yield {
                    "subject": column,
                    "day": when,
                    "rows": rows,
                    "count": nulls,
                    "usual": before[column],
                    "null_share_above_usual": share - before[column],
                }


def _null_shares(engine: duckdb.DuckDBPyConnection, table: str, view: str, day: str) -> dict[str, dict[str, tuple[float, int, int]]]:
    """Return day (or "all") -> column -> (share of nulls, nulls, rows); of amounts, among the events that carry one."""
    optional = [column.name for column in tables.CANONICAL[table] if column.nullable]
    among = {name: EARNING if table == "events" and name in AMOUNTS else "true" for name in optional}
    measures = ", ".join(f"count(*) FILTER ({where} AND {name} IS NULL), count(*) FILTER ({where})" for name, where in among.items())
    days = "()" if day in {"true", "NULL"} else f"(({day}), ())"
    grouping = "" if days == "()" else f" GROUP BY GROUPING SETS {days}"
    label = "NULL" if days == "()" else day
    found: dict[str, dict[str, tuple[float, int, int]]] = {}
    for when, *counts in engine.execute(f"SELECT {label} AS day, {measures} FROM {view}{grouping}").fetchall():
        pairs = zip(optional, counts[::2], counts[1::2], strict=True)
        found[WHOLE if when is None else str(when)] = {name: (nulls / rows, nulls, rows) for name, nulls, rows in pairs if rows}
    return found


def _reasons(engine: duckdb.DuckDBPyConnection, known: Usual) -> Iterator[Line]:
    """Yield the share of rows refused for each reason, by day of receipt and over the batch; of rows that have a time."""
    day = f"CAST(coalesce({c.RECEIVED_AT}, {c.EVENT_AT}) AS DATE)"
    rows = {
        str(when): n for when, n in engine.execute(f"SELECT {day}, count(*) FROM kept_events WHERE NOT ({TIMELESS}) GROUP BY 1").fetchall()
    }
    rows[WHOLE] = sum(rows.values())
    refused = engine.execute(
        f"SELECT {day}, grouping({day}), {c.REASONS}[1] AS reason, count(*), mode({c.EVENT_TYPE}) FROM quarantined_events WHERE NOT ({TIMELESS})"
        f" GROUP BY GROUPING SETS (({day}, reason), (reason)) ORDER BY ALL"
    ).fetchall()
    together: dict[str, dict[str, int]] = defaultdict(dict)
    for when, over_all, reason, count, common in refused:
        key = WHOLE if over_all else str(when)
        if rows[key] < MIN_ROWS:
            continue
        together[key][reason] = count
        line = {"subject": reason, "day": key, "rows": rows[key], "count": count, "usual": known.reason(reason)}
        above = count / rows[key] - known.reason(reason)
        yield {**line, "reason_share_above_usual": above}
        if reason == UNKNOWN_TYPE and known.reason_share is not None:
            yield {**line, "subject": f"{c.EVENT_TYPE} {common!r}", "unknown_type_share_above_usual": above}
    for key, reasons in together.items():
        if len(reasons) > 1:
            count = sum(reasons.values())
            subject = f"refused for {len(reasons)} reasons ({', '.join(f'{reason}: {n:,}' for reason, n in reasons.items())})"
            above = count / rows[key] - known.reason(ANY)
            yield {
                "subject": subject,
                "day": key,
                "rows": rows[key],
                "count": count,
                "usual": known.reason(ANY),
                "reason_share_above_usual": above,
            }


def _volume(engine: duckdb.DuckDBPyConnection, window: Window, known: Usual) -> Iterator[Line]:
    """Yield the events of each day of the window against the same weekday of the four weeks before."""
    found = dict(engine.execute(f"SELECT CAST({c.EVENT_AT} AS DATE), count(*) FROM accepted_events GROUP BY 1").fetchall())
    for day in window.days():
        expected = known.weekday_rows.get(day.isoweekday(), 0.0)
        whole_day = window.start.date() <= day and datetime(day.year, day.month, day.day, tzinfo=window.end.tzinfo) + DAY <= window.end
        if expected >= MIN_EXPECTED and whole_day:
            rows = found.get(day, 0)
            yield {
                "subject": "events of the day",
                "day": str(day),
                "rows": rows,
                "count": rows,
                "usual": expected,
                "volume_share": rows / expected,
            }


_UNIT_PRICE: Final = f"{c.VALUE} / coalesce(nullif({c.QUANTITY}, 0), 1)"
_SOLD: Final = f"WHERE {c.EVENT_TYPE} = '{c.PURCHASE}' AND {c.VALUE} > 0"
_UNIT_PRICES: Final = (
    f"SELECT {c.ITEM_ID}, CAST({c.RECEIVED_AT} AS DATE) AS day, {_UNIT_PRICE} AS now FROM accepted_events {_SOLD}",
    f"SELECT {c.ITEM_ID}, median({_UNIT_PRICE}) AS before FROM recent_events {_SOLD} GROUP BY ALL",
)
_NEW_ITEMS: Final = f"SELECT * FROM accepted_items ANTI JOIN items USING ({c.ITEM_ID}, {c.VALID_FROM})"
_LIST_PRICES: Final = (
    f"SELECT {c.ITEM_ID}, NULL::DATE AS day, {c.PRICE} AS now FROM ({_NEW_ITEMS}) WHERE {c.PRICE} > 0",
    f"SELECT {c.ITEM_ID}, median({c.PRICE}) AS before FROM items WHERE {c.PRICE} > 0 GROUP BY ALL",
)


def _prices(engine: duckdb.DuckDBPyConnection, queries: tuple[str, str], column: str) -> Iterator[Line]:
    """Yield how prices compare with what the same items cost before: the factor between, and the share out of scale."""
    now, before = queries
    found = engine.execute(
        f"SELECT day, grouping(day), count(*), count(DISTINCT {c.ITEM_ID}), count(*) FILTER (factor >= {OFF_SCALE}), exp(abs(median(ln(ratio))))"
        f" FROM (SELECT day, {c.ITEM_ID}, now / before AS ratio, greatest(now / before, before / now) AS factor"
        f" FROM ({now}) JOIN ({before}) USING ({c.ITEM_ID})) GROUP BY GROUPING SETS ((day), ()) ORDER BY ALL"
    ).fetchall()
    for when, over_all, rows, items, off, factor in found:
        if items >= MIN_ITEMS and (over_all or when is not None):
            yield {
                "subject": column,
                "day": WHOLE if over_all else str(when),
                "rows": rows,
                "count": off,
                "price_factor": factor,
                "off_scale_share": off / rows,
            }
