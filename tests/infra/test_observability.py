"""Every query of the dashboard and of the alerts reads what the service and the report really tell."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import served_shop
import yaml
from running_service import Running, running

from pipelines.config import REPOSITORY, Home
from pipelines.monitoring import exposition
from pipelines.serving import assembly, clock
from pipelines.serving.metrics import Metrics

ALERTS = REPOSITORY / "infra" / "alerts" / "serving.yml"
DASHBOARD = REPOSITORY / "infra" / "grafana" / "serving.json"
SELECTOR = re.compile(r"\b(reloop_[a-z_]+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'([a-z_]+)\s*(?:=~|!~|!=|=)\s*"')
GROUPING = re.compile(r"\b(?:by|on|without)\s*\(([^)]*)\)")


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def queries() -> dict[str, str]:
    """Return every query by where it stands."""
    told = {f"{panel['title']} {target['refId']}": target["expr"] for panel in panels() for target in panel["targets"]}
    told |= {f"annotation {one['name']}": one["expr"] for one in json.loads(DASHBOARD.read_text())["annotations"]["list"]}
    return told | {rule["alert"]: rule["expr"] for rule in rules()}


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def told() -> dict[str, set[str]]:
    """Return the labels of every series of the service and of the report, by its full name."""
    found: dict[str, set[str]] = {}
    for collector in Metrics().registry._collector_to_names:
        (family,) = collector.describe() if hasattr(collector, "describe") else collector.collect()
        labels = {*collector._labelnames, *({"pid"} if getattr(collector, "_multiprocess_mode", "") == "liveall" else ())}
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        for suffix in suffixes:
            found[family.name + suffix] = labels | ({"le"} if suffix == "_bucket" else set())
    report = {
        name: set(re.findall(r'yield "' + name + r'", \{"?([a-z_]*)', Path(exposition.__file__).read_text())) for name in exposition.HELP
    }
    return {**{name: labels - {""} for name, labels in report.items()}, **found}


def wrong(expr: str, known: dict[str, set[str]]) -> list[str]:
    """Return what a query asks for that nobody tells."""
    selectors = SELECTOR.findall(expr)
    names = [name for name, _ in selectors]
    missing = [name for name in names if name not in known]
    labels = [f"{name}{{{label}}}" for name, inside in selectors for label in MATCHER.findall(inside) if label not in known.get(name, ())]
    groups = {label.strip() for inside in GROUPING.findall(expr) for label in inside.split(",")}
    return [*missing, *labels, *(group for group in groups if not any(group in known.get(name, ()) for name in names))]


@pytest.mark.parametrize("where", queries())
def test_a_query_reads_series_and_labels_that_are_told(where: str) -> None:
    assert SELECTOR.findall(queries()[where])
    assert wrong(queries()[where], told()) == []


def test_a_query_for_what_nobody_tells_is_found_out() -> None:
    known = told()
    assert len(known) > 30
    assert wrong("rate(reloop_request_total[5m])", known) == ["reloop_request_total"]
    assert wrong('reloop_requests_total{user="a"}', known) == ["reloop_requests_total{user}"]
    assert wrong("sum by (rung, item) (reloop_requests_total)", known) == ["item"]


def test_every_metric_of_the_service_is_looked_at() -> None:
    asked = {name for expr in queries().values() for name, _ in SELECTOR.findall(expr)}
    service = {name for name in told() if name not in exposition.HELP}
    roots = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in service} - roots <= {"reloop_refused_total", "reloop_cache_size"}


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    page = (REPOSITORY / "docs" / "serving" / "observability.md").read_text()
    anchors = {
        re.sub(r"[^a-z0-9 -]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in page.splitlines() if line.startswith("#")
    }
    assert len(rules()) >= 15
    assert len({rule["alert"] for rule in rules()}) == len(rules())
    for rule in rules():
        file, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert (file, anchor in anchors) == ("docs/serving/observability.md", True), rule["alert"]
        assert rule["annotations"]["summary"]


@pytest.mark.slow
def test_each_fault_raises_its_own_alert_and_a_quiet_day_none() -> None:
    if (promtool := shutil.which("promtool")) is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    subprocess.run([promtool, "check", "rules", str(ALERTS)], check=True, capture_output=True)
    ran = subprocess.run(
        [promtool, "test", "rules", str(ALERTS.with_name("serving_test.yml"))], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


# What only shows where something is wrong, an experiment runs, or the pipeline's report is scraped.
SILENT = {
    "Requests by arm A", "Refused and failed, by code A", "Degraded, by what A", "PSI against its threshold A", "Skew of logged features A", "Last success of a stage A", "annotation Another release serves",
}  # fmt: skip


@pytest.fixture
def service(served: Home, tmp_path: Path) -> Iterator[Running]:
    home = served_shop.copied(served, tmp_path / "var")
    with (
        served_shop.environment(home),
        assembly.house(home, clock.starting(home, "data") or clock.wall) as made,
        running(made, home) as found,
    ):
        yield found


@pytest.fixture
def prometheus(service: Running, tmp_path: Path) -> Iterator[str]:
    """Yield the address of a real Prometheus that scrapes the running service every second."""
    if (binary := shutil.which("prometheus")) is None:
        pytest.skip("Prometheus is not installed (Debian: apt-get install prometheus)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    target = urllib.parse.urlsplit(service.address).netloc
    settings = {
        "global": {"scrape_interval": "1s"},
        "rule_files": [str(ALERTS)],
        "scrape_configs": [{"job_name": "reloop", "static_configs": [{"targets": [target]}]}],
    }
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(settings))
    command = [
        binary,
        f"--config.file={tmp_path}/prometheus.yml",
        f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        yield f"http://127.0.0.1:{port}"
        server.terminate()


def _evaluated(address: str, expr: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{address}/api/v1/query?{urllib.parse.urlencode({'query': expr})}", timeout=10) as answer:
        said: dict[str, Any] = json.load(answer)
    return said


@pytest.mark.slow
def test_a_real_prometheus_evaluates_every_query_and_the_dashboard_is_not_empty(service: Running, prometheus: str) -> None:
    end, series = time.monotonic() + 60, 0
    while time.monotonic() < end and series < 8:
        service.traffic()
        time.sleep(0.5)
        try:
            found = _evaluated(prometheus, "count_over_time(reloop_workers[1m])")["data"]["result"]
            series = int(found[0]["value"][1]) if found else 0
        except OSError:
            continue
    assert series >= 8
    empty = set()
    for where, expr in queries().items():
        answer = _evaluated(prometheus, expr)
        assert answer["status"] == "success", where
        if where not in {rule["alert"] for rule in rules()} and not answer["data"]["result"]:
            empty.add(where)
    assert empty <= SILENT
    firing = _evaluated(prometheus, 'ALERTS{alertstate="firing"}')["data"]["result"]
    assert [one["metric"]["alertname"] for one in firing] == []
