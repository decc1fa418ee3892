"""A bundle is its content: same run, same digest, same version; one changed byte and nothing loads."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from trained_shop import FIRST, SECOND

from pipelines import cycle, publish
from pipelines.config import Home
from pipelines.errors import StateError
from pipelines.ranking import rankers, two_stage
from pipelines.registry import bundle, population, releases, signing, tracking


def digest_of(home: Home) -> str:
    return str(cycle.records(home, FIRST, "bundle")[0]["digest"])


def test_building_again_gives_the_same_digest_and_version(fresh: Home) -> None:
    before = digest_of(fresh)
    assert bundle.build(fresh, FIRST) == 1
    assert digest_of(fresh) == before
    versions = tracking.client(fresh).search_model_versions(f"name = '{tracking.MODEL}'")
    assert sorted(int(one.version) for one in versions) == [1, 2]
    assert [path.name for path in fresh.bundles.iterdir() if len(path.name) == 64 and path.name == before] == [before]


def test_a_version_says_where_it_comes_from(fresh: Home) -> None:
    found = tracking.client(fresh).get_model_version(tracking.MODEL, "2")
    assert found.tags["as_of"] == SECOND.isoformat()
    assert found.tags["digest"] == cycle.records(fresh, SECOND, "bundle")[0]["digest"]
    assert found.tags["git_commit"]
    assert {"trained_on.universe", "trained_on.training_set", "trained_on.ranker"} <= set(found.tags)
    assert found.aliases == ["challenger"]
    assert bundle.facts(fresh, found.tags["digest"])["metrics"]["ndcg_at_10"] > 0


@pytest.mark.parametrize("name", ["model/ranker/model.txt", "model/items.parquet", "model/two_stage.json", "reference.json", "bundle.json"])
def test_one_flipped_bit_anywhere_and_the_bundle_does_not_load(fresh: Home, name: str) -> None:
    file = bundle.folder(fresh, digest_of(fresh)) / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(StateError, match="differ from its manifest"):
        bundle.load(fresh, digest_of(fresh))


def test_a_bundle_under_another_name_or_with_a_stranger_in_it_does_not_load(fresh: Home) -> None:
    path = bundle.folder(fresh, digest_of(fresh))
    (path / "model" / "payload.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(StateError, match=r"payload\.pkl"):
        bundle.load(fresh, digest_of(fresh))
    (path / "model" / "payload.pkl").unlink()
    path.rename(path.with_name("0" * 64))
    with pytest.raises(StateError, match="content of bundle"):
        bundle.load(fresh, "0" * 64)
    with pytest.raises(StateError, match="hexadecimal"):
        bundle.load(fresh, "../../etc")


def test_a_bundle_holds_no_format_that_can_execute_and_no_user(fresh: Home) -> None:
    files = publish.manifest(bundle.folder(fresh, digest_of(fresh))).files
    assert {Path(name).suffix for name in files} <= {".json", ".parquet", ".npz", ".txt"}
    users = {str(user) for user in population_users(fresh)}
    assert len(users) > 300
    text = b"".join((bundle.folder(fresh, digest_of(fresh)) / name).read_bytes() for name in files if name.endswith((".json", ".txt")))
    assert not [user for user in users if f'"{user}"'.encode() in text]


def population_users(home: Home) -> list[str]:
    from pipelines.datasets import universe

    return list(universe.load(home, FIRST).user_ids)


def test_the_reference_counts_every_compared_number(fresh: Home) -> None:
    profile = bundle.reference(fresh, digest_of(fresh))
    now = population.columns(fresh, profile.day)
    assert len(now) > 20
    numbers = {name: len(column) for name, column in now.items() if pa.types.is_floating(column.type) or pa.types.is_integer(column.type)}
    assert len(numbers) > 20
    assert {name: profile.references[name].rows for name in numbers} == numbers
    assert set(now) <= set(profile.references)
    assert population.Profile.from_json(profile.to_json()) == profile
    assert sum(profile.importance.values()) > 0
    assert any("history had only" in reason for reason in profile.incomparable.values())


def test_the_registered_model_loads_without_pickle_in_a_process_of_its_own_and_predicts(trained: Home) -> None:
    """What MLflow serves is what the gate judged: the same lists, from a process in which unpickling anything is an error."""
    script = """
import os, pickle, sys
import mlflow, pandas as pd
from pipelines.registry import tracking
from pipelines.config import Home
home = Home.from_environment()
tracking.client(home)
def refuse(event, arguments):
    if event == "pickle.find_class":
        raise RuntimeError(f"unpickled {arguments}")
sys.addaudithook(refuse)
model = mlflow.pyfunc.load_model("models:/reloop@challenger")
found = model.predict(pd.DataFrame({"user_id": sys.argv[2:]}), params={"as_of": sys.argv[1], "k": 5})
print("LISTS", found.groupby("user_id").item_id.apply(" ".join).to_dict())
"""
    users = [*population_users(trained)[:2], "nobody-knows-me"]
    answer = subprocess.run(
        [sys.executable, "-c", script, SECOND.isoformat(), *users],
        capture_output=True, text=True, check=False,
        env={**os.environ, "RELOOP_HOME": str(trained.root), "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr[-2000:]
    digest = cycle.records(trained, SECOND, "bundle")[0]["digest"]
    lists = two_stage.rank_users(trained, bundle.load(trained, digest), np.array(users), SECOND, 5)
    expected = {str(user): " ".join(row) for user, row in zip(lists.user_ids, lists.item_ids, strict=True)}
    assert ast.literal_eval(answer.stdout.split("LISTS ")[1]) == expected


def test_an_ensemble_joins_the_newest_release_of_an_earlier_cycle(tmp_path: Path) -> None:
    """Also after this cycle's own bundle was released: a rerun must join what it joined before."""
    home = Home(tmp_path)
    assert bundle.to_join(home, SECOND) is None, "not asked for"
    (home.root / "reloop.toml").write_text('[ranking]\nranker = "ensemble"\n')
    assert bundle.to_join(home, SECOND) is None, "nothing is released"
    for version, (moment, sources) in enumerate(((FIRST, ("als",)), (SECOND, ("knn",))), start=1):
        building = home.bundles / "building"
        with publish.folder(building, {}) as out:
            publish.write_json(out / bundle.FACTS_FILE, {"as_of": moment.isoformat()})
            columns = tuple(f"{source}_{what}" for source in sources for what in ("score", "rank"))
            rankers.save(out / bundle.MODEL_FOLDER / "ranker", rankers.make("rrf").restore({}, columns))
        signing.sign(home, building)
        digest = publish.manifest(building).digest
        building.rename(bundle.folder(home, digest))
        releases.flip(home, releases.pointer(home), version=version, digest=digest, as_of=moment.isoformat(), key=None, body={})
        joined = bundle.to_join(home, SECOND)
        assert joined is not None
        assert joined.features == ("als_score", "als_rank")
    assert bundle.to_join(home, FIRST) is None, "nothing was released before the first"
