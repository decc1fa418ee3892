"""Implicit matrix factorisation fitted by Spark MLlib, for interactions that one machine does not hold; answered as `als` answers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import sparse

from pipelines.datasets.interactions import Floats, Interactions
from pipelines.errors import ReloopError, StateError
from pipelines.retrieval import extras, neighbours, spark_job
from pipelines.retrieval.als import Als

# Nothing listens beyond this machine; no page, no progress bar.
LOCAL: Final = {"spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}
QUIET: Final = {"spark.ui.enabled": "false", "spark.ui.showConsoleProgress": "false"}


@dataclass(frozen=True)
class SparkAls(Als):
    """The model of `Als`, fitted by MLlib's ALS with implicit preferences; the state is `Als`'s, and answering needs no Spark.

    MLlib regularises a row of n pairs by regParam * n (ALS-WR; Zhou et al., AAIM 2008). The loss does not change if one
    side grows and the other shrinks, so only the product of the two sides' strengths counts, and
    regParam = regularization / sqrt(mean n of users * mean n of items) is as strong, in the mean, as `Als` with the same knob;
    mean_power in the state is that root. Spark runs in a process of its own, which ends with its JVM whatever happens; pairs and
    factors pass through Parquet files. The same knobs and pairs give the same bytes, whatever the number of threads.

    Attributes:
        frequency_exponent: 1; MLlib has no other.
        num_threads: of local Spark, and of the answers.
        n_blocks: pieces that users and items are cut into; it shapes the first factors, hence the last bits.
        master: where Spark runs, as `spark-submit --master`; empty means on this machine. A cluster's other settings are
            read from where Spark reads them (SPARK_CONF_DIR).
        driver_memory: of the JVM that drives (and, on this machine, does all the work).
        work_folder: where the files pass through; a cluster's workers must see it. Empty means the system's temporary folder.
    """

    frequency_exponent: float = 1.0
    n_blocks: int = 4
    master: str = ""
    driver_memory: str = "2g"
    work_folder: str = ""

    def require(self) -> None:
        """Check that there is something to run.

        Raises:
            ReloopError: PySpark or Java is missing.
        """
        extras.require("spark_als", "spark", "pyspark")
        home = os.environ.get("JAVA_HOME")
        if shutil.which("java", path=None if home is None else str(Path(home) / "bin")) is None:
            raise ReloopError(
                "spark_als",
                found=f"no java {'on the PATH' if home is None else f'in JAVA_HOME ({home})'}",
                allowed="Java 17 or newer, which Spark runs on",
                hint="Debian: apt-get install openjdk-17-jre-headless; or set JAVA_HOME",
            )

    def fit(self, interactions: Interactions) -> Self:
        """Return a fitted copy.

        Raises:
            ReloopError: PySpark or Java is missing, or Spark failed.
            StateError: `frequency_exponent` is not 1.
        """
        if self.frequency_exponent != 1:
            raise StateError("spark_als: frequency_exponent", found=str(self.frequency_exponent), allowed="1, which is all that MLlib has")
        age_days = (interactions.as_of - interactions.at) / 86_400e6
        strength = (interactions.weight * 0.5 ** (age_days / self.half_life_days)).astype(np.float32)
        users = neighbours.user_item(interactions, strength, newest=len(strength))
        n_items = users.shape[1]
        n_of_item = np.bincount(users.indices, minlength=n_items)
        known, met = n_of_item > 0, np.diff(users.indptr)
        factor = np.zeros((n_items, self.n_factors), dtype=np.float32)
        root = 1.0
        if known.any():
            root = float(np.sqrt(met[met > 0].mean() * n_of_item[known].mean()))
            factor[known] = self._factors(users, self.regularization / root)
        return replace(self, state={"n_items": np.array([n_items]), "factor": factor, "known": known, "mean_power": np.array([root])})

    def _power(self, n_pairs: npt.NDArray[np.integer], n_columns: int) -> npt.NDArray[np.float64]:  # noqa: ARG002 - Als's depends on it
        """Return float64 [n_rows], n of each row; 1 for an empty one."""
        return np.asarray(np.maximum(n_pairs, 1), dtype=np.float64)

    def _factors(self, users: sparse.csr_matrix, regularization: float) -> Floats:
        """Return float32 [n, n_factors], of the items that have a pair, in their order."""
        self.require()
        knobs: dict[str, Any] = {"rank": self.n_factors, "regParam": regularization, "alpha": self.alpha, "maxIter": self.n_epochs}
        knobs |= {"seed": self.seed, "numUserBlocks": self.n_blocks, "numItemBlocks": self.n_blocks, "checkpointInterval": 10}
        with tempfile.TemporaryDirectory(prefix="reloop-spark-", dir=self.work_folder or None) as name:
            folder = Path(name)
            options = QUIET | {"spark.driver.memory": self.driver_memory, "spark.sql.warehouse.dir": name}
            if not self.master:
                options |= LOCAL | {"spark.local.dir": name}
            job = {"master": self.master or f"local[{self.num_threads}]", "options": options, "knobs": knobs}
            (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
            row = np.repeat(np.arange(users.shape[0], dtype=np.int32), np.diff(users.indptr))
            pq.write_table(
                pa.table({"user": row, "item": users.indices.astype(np.int32), "strength": users.data}), folder / "pairs.parquet"
            )
            _run(folder, loopback=not self.master)
            found = pq.read_table(folder / "factor.parquet")
        values = found["factor"].combine_chunks().flatten().to_numpy()
        factor: Floats = values.astype(np.float32).reshape(found.num_rows, self.n_factors)[
            np.argsort(found["item"].to_numpy(), kind="stable")
        ]
        return factor


def _run(folder: Path, *, loopback: bool) -> None:
    """Run the job in a folder; Spark's own words are shown where it fails."""
    environment = os.environ | ({"SPARK_LOCAL_IP": "127.0.0.1"} if loopback else {})
    command = [sys.executable, "-P", spark_job.__file__, str(folder)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in said if "Error" in line or "Exception" in line] or said
        hint = "more memory: driver_memory in retrieval.parameters.spark_als"
        if "UnsupportedClassVersionError" in done.stderr:
            hint = "this Spark wants Java 17 or newer; set JAVA_HOME to one"
        raise ReloopError("spark_als", found=f"Spark ended with {done.returncode}: {' / '.join(errors[-3:])}", allowed="a fit", hint=hint)
