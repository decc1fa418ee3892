"""The declarations in `feature_repo/`, bound to a state folder: the Feast store, and the schema of a service."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pyarrow as pa
import yaml

from pipelines import publish
from pipelines.config import REPOSITORY, Home
from pipelines.errors import StateError
from pipelines.window import utc

FOLDER: Final = REPOSITORY / "feature_repo"
MODULES: Final = ("entities", "sources", "views", "services", "user_session")
REGISTRY_URL: Final = "RELOOP_FEAST_REGISTRY"  # SQLAlchemy URL; unset, SQLite in the state folder
REDIS_STORE: Final = "pipelines.features.online_redis.ConditionalRedisOnlineStore"
REDIS: Final = "RELOOP_REDIS"  # host:port,password=..., or redis://...; unset, SQLite in the state folder

os.environ.setdefault("FEAST_USAGE", "False")
os.environ.setdefault("DO_NOT_TRACK", "1")


@dataclass(frozen=True)
class FeatureSpec:
    """One feature of a service.

    Attributes:
        name: its column, `<view>__<feature>`.
        dtype: its arrow type.
        view: the feature view, which is also the mart.
        keys: the join keys of the view, in order.
        description: what it means, with unit and window.
        ttl: a row older than this is no answer.
    """

    name: str
    dtype: pa.DataType
    view: str
    keys: tuple[str, ...]
    description: str
    ttl: timedelta


@contextmanager
def _environment(home: Home) -> Iterator[None]:
    """Let the declarations see the state folder: they read the environment, as under the stock command."""
    told = {"RELOOP_HOME": str(home.root), "FEAST_FS_YAML_FILE_PATH": str(home.feast / "feature_store.yaml")}
    before = {name: os.environ.get(name) for name in told}
    os.environ |= told
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def declarations(home: Home) -> Any:
    """Return everything `feature_repo/` declares, as Feast parses it, with its paths under `home`."""
    from feast.repo_operations import parse_repo

    with _environment(home):
        sys.path.insert(0, str(FOLDER))
        try:
            for name in MODULES:  # parsed before, they would keep the paths of another state folder
                sys.modules.pop(name, None)
            importlib.invalidate_caches()
            here = Path.cwd()
            os.chdir(FOLDER)  # Feast turns files into module names relative to where it runs
            try:
                return parse_repo(FOLDER)
            finally:
                os.chdir(here)
        finally:
            sys.path.remove(str(FOLDER))


def configuration(home: Home) -> dict[str, Any]:
    """Return `feature_store.yaml` with its paths under `home`, and the servers the environment names."""
    config: dict[str, Any] = yaml.safe_load((FOLDER / "feature_store.yaml").read_text(encoding="utf-8"))
    config["registry"]["path"] = os.environ.get(REGISTRY_URL) or f"sqlite:///{home.feast / 'registry.db'}"
    config["offline_store"]["temp_directory"] = str(home.root / "tmp" / "offline_store")
    config["online_store"]["path"] = str(home.feast / "online.db")
    if redis := os.environ.get(REDIS):
        config["online_store"] = {"type": REDIS_STORE, "connection_string": _connection_string(redis)}
    return config


def _connection_string(address: str) -> str:
    """Return Feast's way of writing a Redis address, which may be given as a URL, too."""
    if not address.startswith(("redis://", "rediss://")):
        return address
    url = urlsplit(address)
    settings = {"username": url.username, "password": url.password, "db": url.path.strip("/"), "ssl": url.scheme == "rediss" and "true"}
    return ",".join(
        [f"{url.hostname or '127.0.0.1'}:{url.port or 6379}", *(f"{name}={value}" for name, value in settings.items() if value)]
    )


def open_store(home: Home) -> Any:
    """Return the Feast store of a state folder."""
    from feast import FeatureStore, RepoConfig

    home.feast.mkdir(parents=True, exist_ok=True)
    config = RepoConfig(**configuration(home))
    config.repo_path = FOLDER
    return FeatureStore(config=config)


def materialized_to(view: Any) -> datetime | None:
    """Return the moment whose rows the online store holds of a view; None if nothing was ever loaded.

    It is the end of the latest load, or the newest day that its mart has, where the load was asked for
    more (`feast materialize-incremental` up to now): the registry notes what was asked.
    """
    ends = [utc(end) for _, end in view.materialization_intervals]
    days = [utc(file.stem.removeprefix("as_of=")) for file in Path(view.batch_source.path).parent.glob("as_of=????-??-??.parquet")]
    return min(max(ends), max(days, default=max(ends))) if ends else None


def publish_configuration(home: Home) -> Path:
    """Write the configuration where the stock `feast` command can be pointed at it; return the file.

    It may hold the passwords of the servers that the environment names, so it is its owner's alone.
    """
    file = home.feast / "feature_store.yaml"
    publish.write_text(file, yaml.safe_dump(configuration(home), sort_keys=False), mode=0o600)
    return file


@cache
def _schema(service: str) -> tuple[FeatureSpec, ...]:
    from feast.type_map import feast_value_type_to_pa

    parsed = declarations(Home(REPOSITORY / "var"))
    services = {declared.name: declared for declared in parsed.feature_services}
    if service not in services:
        raise StateError(f"feature service {service}", found="not declared", allowed=str(sorted(services)))
    views = {view.name: view for view in parsed.feature_views}
    entities = {entity.name: entity for entity in parsed.entities}
    specs = []
    for projection in services[service].feature_view_projections:
        keys = tuple(entities[name].join_key for name in views[projection.name].entities)
        specs += [
            FeatureSpec(
                f"{projection.name}__{field.name}",
                feast_value_type_to_pa(field.dtype.to_value_type()),
                projection.name,
                keys,
                field.description,
                views[projection.name].ttl,
            )
            for field in views[projection.name].features  # `schema` is a set: its order changes with the hash seed
        ]
    return tuple(specs)


def schema(home: Home | None = None, service: str = "ranking_v1") -> list[FeatureSpec]:  # noqa: ARG001 - a service is the same in every state folder
    """Return the features of a service, in the order of its columns.

    Raises:
        StateError: `feature_repo/` declares no such service.
    """
    return list(_schema(service))
