"""The real scheduler: Assets alone carry one trigger through the loop, and drift starts a training by itself."""

from __future__ import annotations

import ipaddress
import urllib.error
import urllib.request

import psutil
import pytest
from stack import MINUTES, WORLD, Stack

pytestmark = pytest.mark.timeout(2400)
FLOW = ("reloop_ingest", "reloop_features", "reloop_train", "reloop_promote")


def test_nothing_listens_beyond_loopback(stack: Stack):
    """Promise 44, asked of the kernel for every process that `make up` started."""
    listening = [
        connection.laddr
        for process in stack.up.members(stack.started)
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert {int(stack.url.rpartition(":")[2])} < {address.port for address in listening}
    assert [address for address in listening if not ipaddress.ip_address(address.ip).is_loopback] == []


def test_keys_and_passwords_are_readable_by_their_owner_alone(stack: Stack):
    modes = {name: (stack.home.airflow / name).stat().st_mode & 0o777 for name in ("keys.json", "passwords.json")}
    assert modes == {"keys.json": 0o600, "passwords.json": 0o600}


def test_the_api_wants_a_login(stack: Stack):
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{stack.url}/api/v2/dags")


def test_no_dag_fails_to_import(stack: Stack):
    assert stack.api().call("GET", "/importErrors")["total_entries"] == 0
    assert stack.api().call("GET", "/dags?dag_id_pattern=reloop_")["total_entries"] == 8


@pytest.mark.parametrize(
    ("conf", "named"),
    [
        ({"users": "20; drop table dag"}, "users"),
        ({"path": "{{ conf.get('core', 'fernet_key') }}"}, "path"),
        ({"from": "$(touch x)"}, "from"),
        ({"source": "shell"}, "source"),
    ],
)
def test_the_api_refuses_a_hostile_form_before_anything_runs(stack: Stack, conf, named):
    before = len(stack.runs("reloop_ingest"))
    with pytest.raises(urllib.error.HTTPError) as refused:
        stack.trigger("reloop_ingest", conf)
    assert refused.value.code == 400
    assert f"Invalid input for param {named}" in refused.value.read().decode()
    assert len(stack.runs("reloop_ingest")) == before


def test_one_rest_trigger_runs_through_to_the_decision_by_assets_alone(decided: Stack):
    """Only the ingest was triggered; every other run was made by the scheduler, from an Asset event."""
    kinds = {dag_id: {run["run_type"] for run in decided.runs(dag_id)} for dag_id in FLOW}
    assert kinds == {"reloop_ingest": {"manual"}, **{dag_id: {"asset_triggered"} for dag_id in FLOW[1:]}}
    events = decided.asset_events()
    assert [event["name"] for event in events if event["name"] != "retrain_request"][:4] == [
        "lake",
        "features",
        "challenger",
        "champion_decision",
    ]
    assert {event["extra"]["as_of"] for event in events[:4]} == {"2025-02-24T00:00:00+00:00"}
    decision = next(event for event in events if event["name"] == "champion_decision")["extra"]
    assert decision["verdict"] == "promote"
    assert decision["reasons"]


@pytest.mark.slow
def test_drift_starts_a_training_that_no_cadence_asks_for(decided: Stack):
    """Three days later no training is due; other people come, so the monitor asks for one, and it runs."""
    trained = len(decided.runs("reloop_promote"))
    conf = {**WORLD, "from": "2025-02-24", "to": "2025-02-27", "batch_days": 3, "shifts": ["traffic_mix@2025-02-24"]}
    decided.trigger("reloop_ingest", conf)
    decided.wait("reloop_promote", trained + 1, seconds=20 * MINUTES)
    requests = [event for event in decided.asset_events() if event["name"] == "retrain_request"]
    assert requests
    assert requests[-1]["source_dag_id"] == "reloop_monitor"
    runs = [run for run in decided.runs("reloop_train") if decided.tasks(run)["bundle"] == "success"]
    assert len(runs) == 2
    assert runs[-1]["run_type"] == "asset_triggered"
