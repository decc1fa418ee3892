"""The one environment Airflow runs in: closed, private, under the state folder, deaf to other installations."""

import json
import sys

import pytest
from processes import SERVER

from pipelines.config import REPOSITORY, Home
from pipelines.errors import StateError

sys.path.append(str(REPOSITORY / "dags"))

from reloop_environment import environment, keys, passwords


def test_everything_lies_under_the_state_folder_and_listens_on_loopback(home: Home):
    settings = environment(home, port=1234, base={"PATH": "/bin"})
    assert settings["AIRFLOW_HOME"] == str(home.airflow)
    assert settings["AIRFLOW__API__HOST"] == "127.0.0.1"
    assert settings["AIRFLOW__API__BASE_URL"] == "http://127.0.0.1:1234"
    assert settings["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] == f"sqlite:///{home.root}/airflow/airflow.db"
    assert settings["AIRFLOW__CORE__LOAD_EXAMPLES"] == "False"


def test_another_installation_leaves_no_trace(home: Home):
    settings = environment(home, base={"AIRFLOW_HOME": "/elsewhere", "AIRFLOW__CORE__DAGS_FOLDER": "/elsewhere", "AIRFLOW__FAB__X": "1"})
    assert "/elsewhere" not in settings.values()
    assert "AIRFLOW__FAB__X" not in settings


def test_keys_are_made_once_and_are_nobody_elses_business(home: Home):
    first = keys(home)
    assert keys(home) == first
    assert len(set(first.values())) == 3
    assert (home.airflow / "keys.json").stat().st_mode & 0o777 == 0o600
    assert passwords(home).stat().st_mode & 0o777 == 0o600


def test_processes_that_start_together_agree_on_the_keys(home: Home):
    with SERVER.Pool(4) as pool:
        made = pool.map(keys, [home] * 16)
    assert all(one == made[0] for one in made)


def test_beyond_loopback_only_with_a_password_that_somebody_chose(home: Home):
    with pytest.raises(StateError, match="RELOOP_ADMIN_PASSWORD"):
        environment(home, base={"RELOOP_BIND": "0.0.0.0"})
    with pytest.raises(StateError, match="RELOOP_ADMIN_PASSWORD"):
        environment(home, base={"RELOOP_BIND": "0.0.0.0", "RELOOP_ADMIN_PASSWORD": "short"})
    environment(home, base={"RELOOP_BIND": "0.0.0.0", "RELOOP_ADMIN_PASSWORD": "long enough for this"})
    assert json.loads(passwords(home).read_text()) == {"admin": "long enough for this"}


def test_the_database_is_the_one_that_the_environment_names(home: Home):
    url = "postgresql+psycopg2://reloop:x@127.0.0.1:5432/airflow"
    assert environment(home, base={"RELOOP_AIRFLOW_DB": url})["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] == url
