"""Rules of the house that no linter knows."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.config import REPOSITORY

LIBRARY = sorted((REPOSITORY / "pipelines").rglob("*.py"))
CLOCKS = {("datetime", "now"), ("datetime", "today"), ("datetime", "utcnow"), ("date", "today"), ("time", "time"), ("time", "time_ns")}


def _tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return [path for line in listed.stdout.splitlines() if (path := REPOSITORY / line).is_file()]


def _clock_calls(source: str) -> list[int]:
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    return [call.lineno for call in calls if isinstance(call.func.value, ast.Name) and (call.func.value.id, call.func.attr) in CLOCKS]


def test_a_clock_is_recognised():
    assert _clock_calls("import datetime\nx = datetime.now()\n") == [2]


# A service that lives must know what time it is; it asks in one place, which is handed to everything else.
EDGE = REPOSITORY / "pipelines" / "serving" / "clock.py"


def test_there_is_one_clock():
    assert len(_clock_calls(EDGE.read_text())) == 1


@pytest.mark.parametrize("path", [path for path in LIBRARY if path != EDGE], ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_the_library_never_asks_what_time_it_is(path: Path):
    assert _clock_calls(path.read_text()) == []


def test_sql_never_asks_what_time_it_is():
    models = sorted((REPOSITORY / "dbt").glob("models/**/*.sql"))
    assert models
    asking = [
        path.name for path in models if re.search(r"\b(now\(|current_date|current_timestamp|today\()", path.read_text(), re.IGNORECASE)
    ]
    assert asking == []


def test_nothing_names_a_registry_or_a_place_on_a_machine():
    hosts = re.compile("|".join(["py" + "pi[.]org", "python" + "hosted[.]org", "registry[.]npm" + "js", "deb[.]debian[.]" + "org"]))
    named = [
        path.name
        for path in _tracked()
        if path.suffix in {".py", ".md", ".toml", ".lock", ".yml", ".yaml", ".sh", ".txt"} and hosts.search(path.read_text())
    ]
    assert named == []


def test_no_test_forks_the_process_it_runs_in():
    """Its threads may hold the lock of an allocator at that moment, and the child waits for it for ever; `processes` has a server that forks."""
    fork = re.compile(r'os[.]fork[(]|get_context[(]"fork"')
    alone = {"crash_lab.py", "release_lab.py"}  # programs of their own, of one thread
    assert [path.name for path in (REPOSITORY / "tests").rglob("*.py") if path.name not in alone and fork.search(path.read_text())] == []


def test_every_pinned_package_has_a_hash():
    lock = (REPOSITORY / "requirements.lock").read_text()
    pinned = re.findall(r"^\S+==\S+ \\\n    --hash=sha256:[0-9a-f]{64}", lock, re.MULTILINE)
    assert len(pinned) > 200
    assert len(pinned) == len(re.findall(r"^[A-Za-z0-9]", lock, re.MULTILINE))


def test_telemetry_is_off_before_any_library_is_imported():
    names = ("GX_ANALYTICS_ENABLED", "DBT_SEND_ANONYMOUS_USAGE_STATS", "MLFLOW_DISABLE_TELEMETRY", "FEAST_USAGE", "DO_NOT_TRACK")
    code = f"import os, pipelines; print([os.environ[name].lower() for name in {names}])"
    environment = {name: value for name, value in os.environ.items() if name not in names} | {"GX_ANALYTICS_ENABLED": "true"}
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, cwd=REPOSITORY)
    assert printed.stdout.strip() == "['false', 'false', 'true', 'false', '1']"


def test_the_command_line_starts_without_heavy_imports():
    heavy = {"airflow", "dbt", "evidently", "feast", "great_expectations", "lightgbm", "mlflow", "pandas", "faiss"}
    code = f"import sys, pipelines.cli; print(sorted({heavy} & set(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert printed.stdout.strip() == "[]"
