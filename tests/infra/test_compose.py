"""The compose file and the image hold the rules that a container engine would not tell us about."""

import re
from typing import Any

import pytest
import typer
import yaml

from pipelines.cli import entry
from pipelines.config import REPOSITORY
from pipelines.errors import StateError
from pipelines.serving import server

INFRA = REPOSITORY / "infra"
ONE_SHOT = {"prepare", "settle"}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((INFRA / "compose.yaml").read_text())


@pytest.fixture(scope="module")
def dockerfile() -> list[str]:
    """Return the instructions of the image, continuation lines joined, comments gone."""
    text = (INFRA / "Dockerfile").read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def test_the_services_are_those_of_make_up_and_their_stores(compose):
    components = {"api-server", "scheduler", "dag-processor", "triggerer", "mlflow"}
    assert set(compose["services"]) == components | ONE_SHOT | {"postgres", "redis", "service"}
    assert {tuple(compose["services"][name]["command"]) for name in components} == {("serve", name) for name in components}


def test_the_service_starts_with_flags_that_exist_and_is_well_when_it_may_be_asked(compose):
    service = compose["services"]["service"]
    assert service["entrypoint"] == ["reloop"]
    name, *flags = [re.sub(r"\$\{\w+:-(\d+)\}", r"\1", word) for word in service["command"]]
    options: Any = typer.main.get_command(entry.app)
    asked = options.commands[name].make_context(name, flags).params
    assert (asked["host"], asked["port"], asked["workers"], asked["auth"]) == ("0.0.0.0", 8000, 2, None)
    assert service["ports"] == ["127.0.0.1:${SERVICE_PORT:-8000}:8000"]
    assert not server.loopback(asked["host"]), "so keys are asked for"
    assert "http://127.0.0.1:8000/readyz" in service["healthcheck"]["test"][-1]
    assert "user" not in service, "the image's own, which is not root"
    compile(service["healthcheck"]["test"][-1], "healthcheck", "exec")


def test_a_service_that_listens_beyond_loopback_does_not_start_without_a_key(home):
    with pytest.raises(StateError, match="no API key"):
        server.orders(home, "0.0.0.0")


def test_every_image_is_pinned_to_a_full_version(compose, dockerfile):
    images = [service["image"] for service in compose["services"].values()]
    images += [line.split()[1] for line in dockerfile if line.startswith("FROM")]
    assert len(images) == 12
    assert all(re.fullmatch(r"[a-z]+:\d+\.\d+(\.\d+)?(-[a-z-]+)?", image) for image in images)


def test_nothing_is_privileged_or_shares_the_host(compose):
    forbidden = {"privileged", "cap_add", "devices", "pid", "ipc", "network_mode", "userns_mode"}
    for name, service in compose["services"].items():
        assert not forbidden & service.keys(), name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert not any(str(volume).startswith("/") for volume in service.get("volumes", [])), name


def test_ports_are_published_on_loopback_only_and_stores_not_at_all(compose):
    published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert set(published) == {"api-server", "mlflow", "service"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)
    assert compose["networks"]["inside"]["internal"] is True


def test_whatever_stays_says_whether_it_is_well(compose):
    for name, service in compose["services"].items():
        if name in ONE_SHOT:
            assert service["restart"] == "no", name
        else:
            assert service["healthcheck"]["test"][0] == "CMD", name
            assert service["restart"] == "unless-stopped", name


def test_who_depends_on_whom_exists_and_is_waited_for(compose):
    edges = [
        (name, other, how["condition"])
        for name, service in compose["services"].items()
        for other, how in service.get("depends_on", {}).items()
    ]
    assert len(edges) > 8
    for name, other, condition in edges:
        assert other in compose["services"], name
        assert condition == ("service_completed_successfully" if other in ONE_SHOT else "service_healthy"), name


def test_no_secret_is_written_down(compose):
    secret = re.compile(r"PASSWORD|AUTH|_DB$|_REGISTRY$|_REDIS$")
    values = [
        (name, value)
        for service in compose["services"].values()
        for name, value in service.get("environment", {}).items()
        if secret.search(name)
    ]
    assert len(values) > 20
    assert all("${" in value for _, value in values)
    examples = [line for line in (INFRA / ".env.example").read_text().splitlines() if "PASSWORD=" in line]
    assert len(examples) == 3
    assert all(line.endswith("=") for line in examples)


def test_every_variable_of_the_compose_file_is_in_the_example(compose):
    asked = set(re.findall(r"\$\{(\w+)", (INFRA / "compose.yaml").read_text()))
    offered = {
        line.partition("=")[0] for line in (INFRA / ".env.example").read_text().splitlines() if "=" in line and not line.startswith("#")
    }
    assert asked == offered


def test_the_image_runs_as_nobody_special_and_installs_only_hashed_packages(dockerfile):
    assert [line for line in dockerfile if line.startswith("USER")] == ["USER reloop"]
    assert dockerfile[-1].startswith("CMD [")
    assert not any(line.startswith("ADD") or "curl" in line or "--privileged" in line for line in dockerfile)
    installs = [line for line in dockerfile if "pip install" in line]
    assert len(installs) == 2
    assert all("--require-hashes" in line or "--no-deps" in line for line in installs)


def test_what_the_image_copies_exists_and_passes_the_ignore_file(dockerfile):
    allowed = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {part for line in dockerfile if line.startswith("COPY") and "--from" not in line for part in line.split()[1:-1]}
    assert len(copied) > 7
    for path in copied:
        assert (REPOSITORY / path).exists(), path
        assert path in allowed, path
