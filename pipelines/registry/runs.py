"""What each cycle did, as MLflow runs that a person can find: `als-2025-03-03`, `lambdarank-2025-03-03`, `release-2025-03-03`.

Everything comes from the stages' records and the settings. A run is found again by its tags `cycle`
and `part`, so a rerun updates it and never adds a second one.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from pipelines import config, cycle, publish
from pipelines.config import Home
from pipelines.datasets import universe
from pipelines.ranking import attribution, importance, judging, search
from pipelines.registry import tracking
from pipelines.window import micros, utc

RETRIEVAL: Final = "reloop/retrieval"
RANKING: Final = "reloop/ranking"
RELEASE: Final = "reloop/release"
TABLES: Final = "mlflow.loggedArtifacts"  # the tag by which MLflow finds the tables of a run
NOT_METRICS: Final = {"seconds"}
SERVED: Final = Path(__file__).with_name("served_model.py")


def metric_name(name: str) -> str:
    """Return a name that MLflow takes for a metric.

    >>> metric_name("ndcg@10 (light users)")
    'ndcg_at_10 _light users_'
    """
    return re.sub(r"[^\w\-. /:]", "_", name.replace("@", "_at_"))


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Yield the leaves of nested mappings with dotted names."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def metrics(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a record under names that MLflow takes; `seconds` too, it is a cost."""
    return {
        metric_name(name): float(value)
        for name, value in flat(record)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def ensure(home: Home, experiment: str, as_of: datetime, part: str) -> str:
    """Return the id of the run of one part of a cycle, made if it is not there."""
    books, moment = tracking.client(home), utc(as_of).isoformat()
    where = tracking.experiment(home, experiment)
    found = books.search_runs([where], f"tags.cycle = '{moment}' and tags.part = '{part}'", max_results=1)
    if found:
        return str(found[0].info.run_id)
    tags = {"cycle": moment, "part": part}
    return str(books.create_run(where, start_time=micros(as_of) // 1000, tags=tags, run_name=f"{part}-{utc(as_of):%Y-%m-%d}").info.run_id)


def log(
    home: Home, experiment: str, as_of: datetime, part: str, record: Mapping[str, Any], *, tags: Mapping[str, Any] | None = None
) -> str:
    """Write a record into the run of one part of a cycle, the whole configuration as its params; return the run's id."""
    from mlflow.entities import Metric, Param, RunTag

    books, run_id = tracking.client(home), ensure(home, experiment, as_of, part)
    run = books.get_run(run_id)
    stamp = micros(as_of) // 1000
    # MLflow keeps every value of a metric: only what changed is written, so that a rerun leaves no trace.
    measured = {name: value for name, value in metrics(record).items() if run.data.metrics.get(name) != value}
    params = {name: str(value)[:6000] for name, value in flat(config.load(home).model_dump(mode="json")) if name not in run.data.params}
    said = {name: tracking.tag(value) for name, value in (tags or {}).items()}
    batches = [list(params.items())[i : i + 100] for i in range(0, max(len(params), 1), 100)]
    for batch in batches:
        books.log_batch(run_id, params=[Param(name, value) for name, value in batch])
    books.log_batch(
        run_id, metrics=[Metric(name, value, stamp, 0) for name, value in measured.items()], tags=[RunTag(k, v) for k, v in said.items()]
    )
    if not run.inputs.dataset_inputs:
        books.log_inputs(run_id, datasets=_data(home, as_of))
    state = "FAILED" if record.get("state") == "failed" else "FINISHED"
    books.set_terminated(run_id, state, end_time=stamp + int(1000 * float(record.get("seconds") or 0)))
    return run_id


def _data(home: Home, as_of: datetime) -> list[Any]:
    """Return the data a training run stood on, as MLflow's dataset entities: name, digest, where it lies."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    found = []
    for name in ("universe", "training_set"):
        path = universe.run_folder(home, as_of) / name
        if (path / publish.MANIFEST).is_file():
            manifest = publish.manifest(path)
            entity = Dataset(
                name=name,
                digest=manifest.digest[:36],
                source_type="local",
                source=json.dumps({"uri": path.as_uri()}),
                profile=json.dumps({"files": len(manifest.files)}),
            )
            found.append(DatasetInput(entity, [InputTag("mlflow.data.context", "training")]))
    return found


def log_cycle(home: Home, as_of: datetime) -> None:
    """Write what a cycle recorded into MLflow: a run for each source, for the ranker, and for the release. Safe to repeat."""
    worth = {source: row for record in cycle.records(home, as_of, "attribution") for source, row in record.get("sources", {}).items()}
    for record in cycle.records(home, as_of, "retrieval"):
        added = {name: value for name, value in worth.get(record["key"], {}).items() if name not in record}
        log(home, RETRIEVAL, as_of, str(record["key"]), {**added, **_figures(record)}, tags={"source": record["key"]})
    for record in cycle.records(home, as_of, "blend"):
        adds = {source: row["contribution"] for source, row in worth.items()}
        run_id = log(home, RETRIEVAL, as_of, "blend", {**_figures(record), "contribution": adds}, tags={"source": "blend"})
        if worth:
            log_table(home, run_id, "sources.json", [{"source": source, **row} for source, row in worth.items()])
    ranked = cycle.records(home, as_of, "ranker") + cycle.records(home, as_of, "ranking") + cycle.records(home, as_of, "training_set")
    if ranked:
        merged = {record["stage"]: _figures(record) for record in ranked}
        name = str(merged.get("ranker", {}).get("ranker", "lambdarank"))
        run_id = log(home, RANKING, as_of, name, {**merged.pop("ranking", {}), **merged})
        _log_evaluation(home, as_of, run_id)
    for record in cycle.records(home, as_of, "search"):
        run_id = log(home, RANKING, as_of, "search", _figures(record), tags={"reasons": _text(record["reasons"])})
        rows = [{key: trial[key] for key in ("number", "ndcg_at_10", "rounds")} | trial["knobs"] for trial in search.trials(home, as_of)]
        log_table(home, run_id, "trials.json", rows)
    gates, drifts = cycle.records(home, as_of, "gate"), cycle.records(home, as_of, "drift")
    if gates or drifts or cycle.records(home, as_of, "bundle"):
        parts = {
            record["stage"]: _figures(record)
            for name in ("ingest", "features", "bundle", "gate", "drift")
            for record in cycle.records(home, as_of, name)
        }
        tags = {
            f"{record['stage']}.{name}": _text(record[name])
            for record in gates + drifts
            for name in ("verdict", "reasons")
            if name in record
        }
        log(home, RELEASE, as_of, "release", parts, tags=tags)


def _log_evaluation(home: Home, as_of: datetime, run_id: str) -> None:
    """Put plots and tables of the evaluation beside the ranker's run."""
    folder = judging.folder(home, as_of)
    for name in (judging.RELIABILITY_FILE, *importance.PLOTS):
        if (plot := folder / name).is_file():
            tracking.client(home).log_text(run_id, plot.read_text(encoding="utf-8"), name)
    if (file := folder / importance.FILE).is_file():
        log_table(home, run_id, importance.FILE, json.loads(file.read_text(encoding="utf-8"))["features"])
    if (folder / attribution.FILE).is_file():
        log_table(home, run_id, "attribution.json", attribution.load(home, as_of))


def log_table(home: Home, run_id: str, file: str, rows: list[dict[str, Any]]) -> None:
    """Put rows beside a run as a table that MLflow's pages show and `mlflow.load_table` reads.

    A rerun replaces it: MLflow's own `log_table` would append the rows once more.
    """
    import pandas as pd

    books = tracking.client(home)
    books.log_text(run_id, pd.DataFrame(rows).to_json(orient="split", index=False), file)
    listed, entry = json.loads(books.get_run(run_id).data.tags.get(TABLES, "[]")), {"path": file, "type": "table"}
    if entry not in listed:
        books.set_tag(run_id, TABLES, json.dumps([*listed, entry]))


def _figures(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in {"stage", "key", "state", "error"}}


def _text(value: Any) -> str:
    return "\n".join(value) if isinstance(value, list) else str(value)


def log_bundle(home: Home, as_of: datetime, digest: str) -> tuple[str, str]:
    """Log a bundle as an MLflow model in the cycle's release run; return (run id, model URI)."""
    import mlflow
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    from pipelines.registry import bundle_folder

    run_id = ensure(home, RELEASE, as_of, "release")
    said = bundle_folder.document(home, digest, bundle_folder.FACTS_FILE)
    signature = ModelSignature(
        inputs=Schema([ColSpec("string", "user_id")]),
        outputs=Schema(
            [
                ColSpec("string", "user_id"),
                ColSpec("long", "rank"),
                ColSpec("string", "item_id"),
                ColSpec("double", "score"),
                ColSpec("string", "sources"),
            ]
        ),
        params=ParamSchema([ParamSpec("as_of", "string", said["as_of"]), ParamSpec("k", "long", 10)]),
    )
    versions = publish.manifest(bundle_folder.folder(home, digest)).facts["libraries"]
    if (known := _logged(home, digest)) is not None:
        return run_id, known
    with _quiet(), mlflow.start_run(run_id=run_id):
        logged = mlflow.pyfunc.log_model(
            name=tracking.MODEL,
            python_model=str(SERVED),
            artifacts={"bundle": str(bundle_folder.folder(home, digest))},
            signature=signature,
            input_example=pd.DataFrame({"user_id": ["someone-new"]}),
            # Named, because guessing them runs the model in a process of its own.
            pip_requirements=[f"mlflow=={mlflow.__version__}", *(f"{name}=={version}" for name, version in sorted(versions.items()))],
            metadata={"digest": digest, "as_of": said["as_of"]},
            tags={"digest": digest},
        )
    return run_id, str(logged.model_uri)


def _logged(home: Home, digest: str) -> str | None:
    """Return the URI of a bundle that was logged and not registered, None without; what a killed process had not finished is dropped."""
    books, found = tracking.client(home), None
    for one in books.search_logged_models([tracking.experiment(home, RELEASE)], filter_string=f"tags.digest = '{digest}'"):
        if str(one.status) == "READY" and found is None:
            found = f"models:/{one.model_id}"
        elif str(one.status) != "READY":
            books.delete_logged_model(one.model_id)
    return found


def describe_version(home: Home, version: int, tags: Mapping[str, Any], description: str) -> None:
    """Put a decision's words onto a model version."""
    books = tracking.client(home)
    for name, value in tags.items():
        books.set_model_version_tag(tracking.MODEL, str(version), name, tracking.tag(value))
    books.update_model_version(tracking.MODEL, str(version), description)


def _quiet() -> Any:
    """Silence MLflow's progress bars, and the advice to type `predict`: the signature is stated."""
    import contextlib
    import logging
    import os
    import warnings

    @contextlib.contextmanager
    def hushed() -> Any:
        os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield

    return hushed()
