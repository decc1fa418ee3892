"""Reloop: the pipeline that keeps a recommender system trained, fresh and honest.

The folders are the stages, in the order the data flows: `sources`, `validation`, `features`,
`datasets`, `retrieval`, `ranking`, `evaluation`, `registry`, `serving`, `monitoring`.
"""

import os

# No library of the stack phones home. Set before any of them is imported, and not overridable:
# what a shop's data looks like is nobody else's business.
os.environ.update(
    {
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
        "DO_NOT_TRACK": "1",
        "FEAST_USAGE": "False",
        "GX_ANALYTICS_ENABLED": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "SCARF_ANALYTICS": "false",
    }
)

# Threads that wait for each other sleep instead of spinning: beside any other busy process on the
# same cores, spinning made LightGBM five times slower. Read when the first OpenMP library loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
