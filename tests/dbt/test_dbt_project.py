"""The dbt project, as any dbt user meets it: stock commands, unit tests, documentation."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipelines import lake
from pipelines.config import Home
from pipelines.features.build import MARTS, PROJECT

sys.path.insert(0, str(Path(__file__).parents[1] / "features"))
from feature_world import events, items, table


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the state folder of a shop that has items and events but no users table, built by the stock command."""
    root = tmp_path_factory.mktemp("stock") / "var"
    lake.land_tables(Home(root), events=table("events", events()), items=table("items", items()))
    (root / "warehouse").mkdir()
    result = dbt(root, "build")  # models, data tests and unit tests, every day the lake knows
    assert result.returncode == 0, result.stdout[-3000:]
    return root


def dbt(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the stock command in dbt/, with nothing but the state folder named."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DBT_")}
    environment |= {"RELOOP_HOME": str(root), "DBT_TARGET_PATH": str(root / "target"), "DBT_LOG_PATH": str(root / "logs")}
    return subprocess.run(
        [shutil.which("dbt", path=str(Path(sys.executable).parent)) or "dbt", *arguments],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def results(root: Path) -> dict[str, str]:
    """Return node -> status of the last command."""
    return {node["unique_id"]: node["status"] for node in json.loads((root / "target" / "run_results.json").read_text())["results"]}


def test_stock_dbt_build_runs_every_model_data_test_and_unit_test_of_a_lake_without_users(warehouse: Path):
    found = results(warehouse)
    kinds = [name.split(".")[0] for name in found]
    assert kinds.count("model") == len(list(PROJECT.glob("models/**/*.sql")))
    assert kinds.count("test") >= 15
    assert kinds.count("unit_test") >= 5
    assert {status for name, status in found.items() if not name.startswith("exposure")} <= {"success", "pass"}


def test_every_model_and_every_column_of_a_mart_is_described(warehouse: Path):
    manifest = json.loads((warehouse / "target" / "manifest.json").read_text())
    models = [node for node in manifest["nodes"].values() if node["resource_type"] == "model"]
    assert len(models) == len(list(PROJECT.glob("models/**/*.sql"))) > 20
    assert [model["name"] for model in models if not model["description"]] == []
    for mart in MARTS:
        model = manifest["nodes"][f"model.reloop.{mart}"]
        assert model["config"]["contract"]["enforced"]
        assert all(column["description"] and column["data_type"] for column in model["columns"].values())
    assert {exposure["type"] for exposure in manifest["exposures"].values()} == {"ml"}


def test_a_truth_that_does_not_hold_fails_the_build(warehouse: Path):
    """The data tests can fail: told that an item has no rank above one, dbt says which rows do."""
    project = warehouse / "broken"
    shutil.copytree(PROJECT, project, ignore=shutil.ignore_patterns("target", "logs"), dirs_exist_ok=True)
    marts = project / "models" / "marts" / "_marts.yml"
    marts.write_text(marts.read_text().replace("truth: popularity_rank_7d >= 1", "truth: popularity_rank_7d <= 1"))
    result = dbt(
        warehouse, "test", "--project-dir", str(project), "--profiles-dir", str(project), "--select", "item_daily_ranks_start_at_one"
    )
    assert result.returncode == 1
    assert "FAIL" in result.stdout


@pytest.mark.slow
def test_stock_dbt_docs_and_source_freshness_work(warehouse: Path):
    assert dbt(warehouse, "docs", "generate").returncode == 0
    assert (warehouse / "target" / "catalog.json").is_file()
    freshness = dbt(warehouse, "source", "freshness")  # a world of January is stale, and says so
    assert "ERROR STALE freshness of lake.events" in freshness.stdout


def test_the_contracts_are_the_schema_that_feast_declares():
    """One list of features: the columns, types and descriptions of the marts' contracts and of the feature views agree."""
    from pipelines.features import store

    names = {"integer": "int32", "double": "double", "varchar": "string", "boolean": "bool"}
    names |= {"varchar[]": "list<item: string>", "bigint[]": "list<item: int64>", "double[]": "list<item: double>"}
    files = [PROJECT / "models" / "marts" / name for name in ("_marts.yml", "_user_session.yml")]
    contracts = [model for file in files for model in yaml.safe_load(file.read_text())["models"]]
    assert {model["name"] for model in contracts} == set(MARTS)
    for model in contracts:
        specs = {
            spec.name.split("__", 1)[1]: spec
            for service in ("ranking_v1", "pairs_v1", "session_v1")
            for spec in store.schema(service=service)
            if spec.view == model["name"]
        }
        columns = {
            column["name"]: column for column in model["columns"] if column["name"] not in {*MARTS[model["name"]], "as_of", "available_at"}
        }
        assert list(columns) == list(specs)
        for name, spec in specs.items():
            assert names[columns[name]["data_type"]] == str(spec.dtype), name
            assert columns[name]["description"] == spec.description, name
