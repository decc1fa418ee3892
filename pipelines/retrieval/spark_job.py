"""What runs inside Spark: one fit of MLlib's ALS, in a process of its own that ends with its JVM.

Called as `python -P spark_job.py FOLDER`; it imports nothing of ours. The folder holds
    job.json         the settings: master, driver_memory, options, and the knobs of `pyspark.ml.recommendation.ALS`
    pairs.parquet    user int32, item int32, strength float32; a pair once, strength > 0
and gets
    factor.parquet   item int32, factor list of float32; a row an item that has a pair, in any order
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any


def main(folder: Path) -> None:
    """Fit, write the items' factors, and stop the session."""
    from pyspark.ml.recommendation import ALS
    from pyspark.sql import SparkSession

    job: dict[str, Any] = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    builder = SparkSession.builder.master(job["master"]).appName("reloop spark_als")
    for name, value in job["options"].items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    try:
        session.sparkContext.setCheckpointDir((folder / "checkpoints").as_uri())
        pairs = session.read.parquet((folder / "pairs.parquet").as_uri())
        model = ALS(implicitPrefs=True, userCol="user", itemCol="item", ratingCol="strength", **job["knobs"]).fit(pairs)
        items = model.itemFactors.selectExpr("id AS item", "features AS factor")
        items.coalesce(1).write.parquet((folder / "factor.parquet").as_uri())
    finally:
        session.stop()


def _end_with_parent(folder: Path) -> None:
    """Have this process end, and the folder with it, when the one that asked is killed; the JVM ends when its standard input does."""

    def end(*_: object) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    signal.signal(signal.SIGTERM, end)
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    _end_with_parent(Path(sys.argv[1]))
    main(Path(sys.argv[1]))
