"""Parse every Dag file as Airflow's processor does, in a process of its own, and print what was found as JSON.

Run by `test_integrity.py`. Airflow itself is imported before the clock starts and the hooks are set, as in
the processor, which imports it once for all files.
"""

# ruff: noqa: E402, F401 - Airflow is imported after the path is set, and whole, as the processor does
import importlib.util
import json
import sys
import time
from pathlib import Path

folder = Path(sys.argv[1])
sys.path.insert(0, str(folder))

from airflow.sdk import DAG, Asset, AssetAll, AssetAny, Metadata, Param, chain, dag, get_current_context, task
from airflow.sdk.definitions._internal.contextmanager import DagContext
from airflow.serialization.serialized_objects import DagSerialization

HEAVY = {"dbt", "duckdb", "evidently", "faiss", "feast", "great_expectations", "lightgbm", "mlflow", "numpy", "pandas", "pyarrow", "scipy"}
touched: list[str] = []
watching = False


def hook(event: str, arguments: tuple) -> None:
    """Note whatever reaches outside while a Dag file is parsed."""
    if not watching:
        return
    if event in {"socket.connect", "socket.getaddrinfo", "sqlite3.connect", "subprocess.Popen", "os.system"}:
        touched.append(event)
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+") and "__pycache__" not in str(arguments[0]):
        touched.append(f"open {arguments[0]}")


sys.addaudithook(hook)


def asset_names(condition: object) -> list[str]:
    """Return the names of the Assets a schedule waits for."""
    if condition is None:
        return []
    return [condition.name] if isinstance(condition, Asset) else sorted(name for part in condition.objects for name in asset_names(part))


def task_facts(operator: object) -> dict:
    """Return what a test wants to know of one task."""
    facts = {name: getattr(operator, name) for name in ("retries", "owner", "pool", "map_index_template")}
    return facts | {
        "downstream": sorted(operator.downstream_task_ids),
        "outlets": sorted(asset.name for asset in operator.outlets if isinstance(asset, Asset)),
        "mapped": operator.is_mapped,
        "backs_off": bool(operator.retry_exponential_backoff),
        "timeout_s": operator.execution_timeout.total_seconds(),
        "retry_policy": operator.retry_policy is not None,
        "tells_failures": bool(operator.on_failure_callback),
        "operator": operator.operator_name if hasattr(operator, "operator_name") else type(operator).__name__,
    }


def dag_facts(found: DAG) -> dict:
    """Return what a test wants to know of one Dag; also proves that it can be serialized."""
    DagSerialization.deserialize_dag(DagSerialization.serialize_dag(found))
    condition = getattr(found.timetable, "asset_condition", None)
    return {
        "doc_md": found.doc_md,
        "tags": sorted(found.tags),
        "catchup": found.catchup,
        "max_active_runs": found.max_active_runs,
        "start_date": found.start_date.isoformat(),
        "schedule": asset_names(condition),
        "any": type(condition).__name__ if condition else None,
        "params": {
            name: {"schema": param.schema, "description": param.description, "default": param.value if param.has_value else None}
            for name, param in ((name, found.params.get_param(name)) for name in found.params)
        },
        "tasks": {operator.task_id: task_facts(operator) for operator in found.tasks},
    }


result = {}
for file in sorted(folder.glob("reloop_*.py")):
    known = set(sys.modules)
    for sibling in [name for name in sys.modules if name.startswith("reloop_")]:
        del sys.modules[sibling]
    spec = importlib.util.spec_from_file_location(f"parsed_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    touched.clear()
    DagContext.current_autoregister_module_name = module.__name__
    watching = True
    began = time.perf_counter()
    spec.loader.exec_module(module)
    seconds = time.perf_counter() - began
    watching = False
    dags = {value.dag_id: value for value, _ in DagContext.autoregistered_dags}
    DagContext.autoregistered_dags.clear()
    result[file.stem] = {
        "seconds": seconds,
        "touched": list(touched),
        "heavy": sorted(HEAVY & {name.partition(".")[0] for name in set(sys.modules) - known}),
        "dags": {dag_id: dag_facts(found) for dag_id, found in dags.items()},
    }
sys.stdout.write(json.dumps(result, default=str))
