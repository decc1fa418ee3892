"""Every Dag parses fast, touches nothing while it does, says what to do when it fails, and is wired as drawn here."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.config import REPOSITORY
from pipelines.sources.request import Source, World

DAGS = REPOSITORY / "dags"
IDS = (
    "reloop_backfill",
    "reloop_batch",
    "reloop_features",
    "reloop_ingest",
    "reloop_monitor",
    "reloop_promote",
    "reloop_rollback",
    "reloop_train",
)
TAGS = {"reloop", "data", "features", "models", "release", "monitoring", "manual"}

# task -> the tasks that follow it. The picture of each Dag, in words.
GRAPHS: dict[str, dict[str, list[str]]] = {
    "reloop_ingest": {
        "plan": ["read", "settle"],
        "settle": ["impressions", "land", "validate"],
        "read": ["validate"],
        "validate": ["land"],
        "land": [],
        "impressions": [],
    },
    "reloop_features": {
        "settle": ["build", "check_parity", "materialize", "validate_features"],
        "build": ["validate_features"],
        "validate_features": ["feast_apply"],
        "feast_apply": ["materialize"],
        "materialize": ["check_parity"],
        "check_parity": [],
    },
    "reloop_train": {
        "due": ["blend", "bundle", "evaluate", "rank", "retrieve", "search", "sources", "training_set"],
        "sources": ["retrieve"],
        "retrieve": ["blend"],
        "blend": ["training_set"],
        "training_set": ["search"],
        "search": ["rank"],
        "rank": ["evaluate"],
        "evaluate": ["bundle"],
        "bundle": [],
    },
    "reloop_promote": {"decide": ["announce", "review"], "review": ["announce"], "announce": ["tidy"], "tidy": []},
    "reloop_rollback": {"roll_back": ["tell"], "tell": []},
    "reloop_batch": {"champion": ["make_lists"], "make_lists": []},
    "reloop_monitor": {
        "check_drift": ["check_skew", "report", "request_training"],
        "check_skew": ["report"],
        "report": [],
        "request_training": [],
    },
    "reloop_backfill": {
        "plan": ["latest", "read"],
        "latest": ["build", "check_parity", "land_again", "materialize", "validate", "validate_features"],
        "read": ["validate"],
        "validate": ["land_again"],
        "land_again": ["build"],
        "build": ["validate_features"],
        "validate_features": ["feast_apply"],
        "feast_apply": ["materialize"],
        "materialize": ["check_parity"],
        "check_parity": [],
    },
}
# Dag -> (the Assets it waits for, (task, Asset) that it publishes)
FLOW = {
    "reloop_ingest": ([], [("land", "lake")]),
    "reloop_features": (["lake"], [("check_parity", "features")]),
    "reloop_train": (["features", "retrain_request"], [("bundle", "challenger")]),
    "reloop_promote": (["challenger"], [("announce", "champion_decision")]),
    "reloop_batch": (["champion_decision", "features"], []),
    "reloop_monitor": (["champion_decision", "features"], [("request_training", "retrain_request")]),
    "reloop_backfill": ([], [("check_parity", "features")]),
    "reloop_rollback": ([], []),
}
MAPPED = {
    ("reloop_ingest", "read"),
    ("reloop_ingest", "validate"),
    ("reloop_backfill", "read"),
    ("reloop_backfill", "validate"),
    ("reloop_train", "retrieve"),
}
POOLS = {
    "duckdb": {("reloop_ingest", "validate"), ("reloop_ingest", "land"), ("reloop_ingest", "impressions"), ("reloop_features", "build")}
    | {("reloop_backfill", task) for task in ("validate", "land_again", "build")},
    "training": {("reloop_train", task) for task in ("retrieve", "blend", "training_set", "search", "rank", "evaluate")}
    | {("reloop_batch", "make_lists")},
}


@pytest.fixture(scope="session")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what `probe.py` found in each file of dags/, with the network denied where the machine allows that."""
    home = tmp_path_factory.mktemp("probe")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW_", "RELOOP_"))}
    environment |= {"AIRFLOW_HOME": str(home), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    command = [sys.executable, str(Path(__file__).with_name("probe.py")), str(DAGS)]
    alone = ["unshare", "--net", "--map-root-user"]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode == 0:
        command = [*alone, *command]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert printed.returncode == 0, printed.stderr[-3000:]
    return json.loads(printed.stdout)


@pytest.fixture(scope="session")
def dags(parsed: dict[str, Any]) -> dict[str, Any]:
    return {dag_id: facts for file in parsed.values() for dag_id, facts in file["dags"].items()}


def tasks(dags: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    found = {(dag_id, task_id): facts for dag_id, dag in dags.items() for task_id, facts in dag["tasks"].items()}
    assert len(found) > 25
    return found


def test_one_dag_a_file_named_like_it(parsed):
    assert sorted(dag_id for file in parsed.values() for dag_id in file["dags"]) == sorted(IDS)
    assert all(list(parsed[dag_id]["dags"]) == [dag_id] for dag_id in IDS)


def test_the_processor_is_told_to_ignore_every_file_without_a_dag(parsed):
    ignored = {line for line in (DAGS / ".airflowignore").read_text().splitlines() if line and not line.startswith("#")}
    without = {f"{name}.py" for name, file in parsed.items() if not file["dags"]}
    assert ignored == without | {"headless.py"}


@pytest.mark.parametrize("dag_id", IDS)
def test_a_file_parses_within_a_second_and_imports_nothing_heavy(parsed, dag_id):
    assert parsed[dag_id]["seconds"] < 1.0
    assert parsed[dag_id]["heavy"] == []


@pytest.mark.parametrize("dag_id", IDS)
def test_parsing_opens_no_file_socket_database_or_process(parsed, dag_id):
    assert parsed[dag_id]["touched"] == []


@pytest.mark.parametrize("dag_id", IDS)
def test_the_notes_tell_whoever_is_on_call_what_to_do(dags, dag_id):
    notes = dags[dag_id]["doc_md"]
    for heading in ("**Does**", "**Writes**", "**When it fails**", "**Rerun** is safe"):
        assert heading in notes


def test_tags_come_from_one_vocabulary_and_all_of_it_is_used(dags):
    assert {tag for dag in dags.values() for tag in dag["tags"]} == TAGS
    assert all("reloop" in dag["tags"] for dag in dags.values())


@pytest.mark.parametrize("dag_id", IDS)
def test_time_is_pinned_and_runs_do_not_overlap(dags, dag_id):
    dag = dags[dag_id]
    assert (dag["catchup"], dag["max_active_runs"], dag["start_date"]) == (False, 1, "2025-01-01T00:00:00+00:00")


@pytest.mark.parametrize("dag_id", IDS)
def test_the_task_graph_is_the_one_drawn_here(dags, dag_id):
    assert {task_id: task["downstream"] for task_id, task in dags[dag_id]["tasks"].items()} == GRAPHS[dag_id]


def test_assets_chain_the_dags_as_drawn_here(dags):
    found = {
        dag_id: (dag["schedule"], [(task_id, asset) for task_id, task in dag["tasks"].items() for asset in task["outlets"]])
        for dag_id, dag in dags.items()
    }
    assert found == FLOW
    assert all(dags[dag_id]["any"] == "AssetAny" for dag_id, (waits, _) in FLOW.items() if len(waits) > 1)


def test_every_asset_is_declared_once_in_flow_order():
    declared = [line.partition(" = Asset(")[0] for line in (DAGS / "reloop_assets.py").read_text().splitlines() if " = Asset(" in line]
    assert declared == ["lake", "features", "challenger", "champion_decision", "retrain_request"]


def test_every_task_retries_with_backoff_within_a_time_limit_and_tells_its_failure(dags):
    for name, task in tasks(dags).items():
        assert task["owner"] == "reloop", name
        assert task["retries"] >= 2, name
        assert task["backs_off"], name
        assert task["retry_policy"], name
        assert task["tells_failures"], name
        assert task["timeout_s"] <= 4 * 3600, name


def test_scarce_things_have_named_pools(dags):
    found: dict[str, set[tuple[str, str]]] = {"duckdb": set(), "training": set()}
    for name, task in tasks(dags).items():
        if task["pool"] != "default_pool":
            found[task["pool"]].add(name)
    assert found == POOLS


def test_mapped_tasks_say_what_each_instance_works_on(dags):
    assert {name for name, task in tasks(dags).items() if task["mapped"]} == MAPPED
    assert all(tasks(dags)[name]["map_index_template"] for name in MAPPED)
    assert tasks(dags)["reloop_train", "retrieve"]["map_index_template"] == "{{ task.op_kwargs['source'] }}"


def test_no_task_runs_a_shell_or_a_template(dags):
    others = {name: task["operator"] for name, task in tasks(dags).items() if task["operator"] != "@task"}
    assert others == {("reloop_promote", "review"): "Review"}  # asks a person: its text is made at run time, by no template
    source = "".join(file.read_text() for file in DAGS.glob("reloop_*.py"))
    assert len(source) > 10_000
    assert not any(word in source for word in ("BashOperator", "@task.bash", "os.system", "shell=True", "Variable.get", "dag_run.conf"))


@pytest.mark.parametrize("dag_id", IDS)
def test_every_param_has_a_type_a_title_and_a_description_and_text_is_bounded(dags, dag_id):
    params = dags[dag_id]["params"]
    assert "as_of" in params or dag_id == "reloop_rollback"  # which is about now
    for name, param in params.items():
        schema = param["schema"]
        kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
        assert schema["title"], name
        assert len(schema["description_md"]) > 20, name
        if "string" in kinds:
            assert "enum" in schema or schema["maxLength"] <= 2000, name
        if "integer" in kinds:
            assert {"minimum", "maximum"} <= schema.keys(), name
        if "array" in kinds:
            assert {"items", "maxItems"} <= schema.keys(), name


def test_the_form_offers_what_the_library_understands(dags):
    params = dags["reloop_ingest"]["params"]
    assert params["source"]["schema"]["enum"] == [str(source) for source in Source]
    world = World()
    for name in ("seed", "users", "items", "events_per_day"):
        assert params[name]["default"] == getattr(world, name)
    assert params["faults"]["default"] == params["shifts"]["default"] == []


@pytest.mark.parametrize(
    "hostile",
    ["{{ 7 * 7 }}", "{% raw %}", "$(touch /tmp/x)", "`id`", "a; rm -rf /", "x | sh", "'; drop table events; --", "a\nb", "../../*"],
)
def test_hostile_text_does_not_pass_the_form(dags, hostile):
    import jsonschema

    checked = 0
    for dag_id in IDS:
        for name, param in dags[dag_id]["params"].items():
            if name == "reason":  # free text: goes into records, never into a path, SQL or a template
                continue
            value = [hostile] if "array" in param["schema"]["type"] else hostile
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate(value, param["schema"])
            checked += 1
    assert checked == 36
