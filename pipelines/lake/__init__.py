"""The lake: canonical tables as Parquet, one file of events a day; idempotent, atomic, deduplicated landing.

    lake/events/event_date=D/events.parquet   sorted by (event_at, event_id); an event_id occurs once in the lake
    lake/items/items.parquet                  one row per version, sorted by (item_id, valid_from)
    lake/users/users.parquet                  one row per version, sorted by (user_id, valid_from)
    lake/impressions/shown_date=D/impressions.parquet   what was shown, where it is logged (`impressions`)
    lake/_landings/<batch_id>.json            the ledger: what each batch brought
    lake/_source.json, lake/_head.json        whose data this is; the sequence number of the last landing

The bytes of the tables are a function of the *set* of rows ever landed: order, repetition and the
way they were cut into batches leave no trace.
"""

from pipelines.lake.engine import open_engine
from pipelines.lake.journal import recover
from pipelines.lake.landing import check_source, land, land_tables
from pipelines.lake.ledger import Landing, LandingReport, head, landings, reports
from pipelines.lake.reading import connect, days, event_files, partitions, received_since

__all__ = [
    "Landing",
    "LandingReport",
    "check_source",
    "connect",
    "days",
    "event_files",
    "head",
    "land",
    "land_tables",
    "landings",
    "open_engine",
    "partitions",
    "received_since",
    "recover",
    "reports",
]
