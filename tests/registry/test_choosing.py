"""Corrupt a byte of what serves: the load fails loudly and the release before it serves."""

from __future__ import annotations

import json
import logging

import pytest
import sqlalchemy as sa
from trained_shop import FIRST, SECOND

from pipelines import cycle
from pipelines.config import Home
from pipelines.errors import StateError
from pipelines.registry import bundle, choosing, promotion, release_database, releases


def digests(home: Home) -> tuple[str, str]:
    return tuple(str(cycle.records(home, moment, "bundle")[0]["digest"]) for moment in (FIRST, SECOND))  # type: ignore[return-value]


@pytest.fixture
def two(fresh: Home) -> Home:
    """Return the shop with two releases, the second serving."""
    for version, (moment, digest) in enumerate(zip((FIRST, SECOND), digests(fresh), strict=True), start=1):
        body = {"as_of": moment.isoformat(), "champion_before": version - 1 or None, "champion_after": version, "reasons": []}
        releases.flip(
            fresh, releases.pointer(fresh), version=version, digest=digest, as_of=moment.isoformat(), key=f"decide/{version}", body=body
        )
    return fresh


def damage(home: Home, digest: str) -> None:
    file = home.bundles / digest / "model" / "items.parquet"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def test_before_the_first_release_nothing_serves(fresh: Home) -> None:
    assert choosing.serving(fresh) is None


def test_a_sound_champion_serves_and_every_part_of_it_is_of_one_release(two: Home) -> None:
    found = choosing.serving(two)
    assert found is not None
    assert (found.version, found.digest, found.fallen_back) == (2, digests(two)[1], ())
    assert {"items", "two_stage", "reference", "golden", "retrieval/item_knn"} <= set(found.parts)
    assert not choosing.report_file(two).exists()


def test_one_byte_of_the_champion_and_the_release_before_serves_loudly(two: Home, caplog: pytest.LogCaptureFixture) -> None:
    first, second = digests(two)
    damage(two, second)
    with caplog.at_level(logging.ERROR):
        found = choosing.serving(two)
    assert found is not None
    assert (found.version, found.digest) == (1, first)
    assert "differ from its manifest" in found.fallen_back[0]
    said = json.loads(choosing.report_file(two).read_text())
    assert said == {"serves": {"version": 1, "digest": first}, "reasons": list(found.fallen_back)}
    assert "version 1" in caplog.text
    assert "differ from its manifest" in caplog.text
    assert releases.pointer(two).version == 2, "what is wrong with a file is no decision"

    damage(two, second)  # the same bit again: whole
    assert choosing.serving(two).version == 2  # type: ignore[union-attr]
    assert not choosing.report_file(two).exists()


def test_where_no_release_is_sound_nothing_is_served_and_every_reason_is_said(two: Home) -> None:
    for digest in digests(two):
        damage(two, digest)
    with pytest.raises(StateError, match=r"version 2 .*version 1 .*"):
        choosing.serving(two)


def test_a_pointer_that_no_entry_of_the_ledger_set_is_not_followed(two: Home) -> None:
    """Whoever writes to the database can say what serves, but not behind the ledger's back."""
    first, second = digests(two)
    with release_database.opened(two) as engine, engine.begin() as connection:
        connection.execute(sa.update(release_database.POINTER).values(version=1, digest=first))
    found = choosing.serving(two)
    assert found is not None
    assert (found.version, found.digest) == (2, second)
    assert "which no entry of the ledger set" in found.fallen_back[0]


def test_a_challenger_that_does_not_load_is_never_promoted(two: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    damage(two, digests(two)[1])
    with pytest.raises(StateError, match="differ from its manifest"):
        promotion.sound(two, digests(two)[1])
    assert bundle.rehearse(two, digests(two)[0])["difference"] == 0.0
