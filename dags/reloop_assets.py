"""Every Asset in flow order. Reading this is reading the system: a Dag starts when the one above it has published.

    reloop_ingest   -> lake              -> reloop_features
    reloop_features -> features          -> reloop_train, reloop_monitor, reloop_batch
    reloop_train    -> challenger        -> reloop_promote
    reloop_promote  -> champion_decision -> reloop_monitor, reloop_batch
    reloop_monitor  -> retrain_request   -> reloop_train

Every event carries `as_of`: an asset-triggered run has no logical date, so time rides on the event.
"""

from __future__ import annotations

from airflow.sdk import Asset

GROUP = "reloop"

lake = Asset("lake", group=GROUP)
"""The canonical tables hold new events. Carries as_of, batches."""

features = Asset("features", group=GROUP)
"""The marts hold the day as_of, checked, and the online store serves it. Carries as_of."""

challenger = Asset("challenger", group=GROUP)
"""A judged bundle is registered under the alias challenger. Carries as_of, version."""

champion_decision = Asset("champion_decision", group=GROUP)
"""The gate has spoken, yes or no. Carries as_of, verdict, reasons."""

retrain_request = Asset("retrain_request", group=GROUP)
"""The monitor asks for a training. Carries as_of, action, cause, reason."""

FLOW = (lake, features, challenger, champion_decision, retrain_request)
