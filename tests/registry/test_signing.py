"""Promise 43: a bundle says who built it; a flipped manifest, an old one, another environment's and an unsigned one are refused."""

from __future__ import annotations

import json
import shutil
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipelines import publish
from pipelines.config import Home
from pipelines.errors import StateError
from pipelines.registry import bundle_folder, signing


def made(home: Home, content: str, *, sign: bool = True) -> str:
    building = home.bundles / "building"
    with publish.folder(building, {"git_commit": "abc"}) as out:
        (out / "model.txt").write_text(content, encoding="utf-8")
    if sign:
        signing.sign(home, building)
    digest = publish.manifest(building).digest
    building.rename(home.bundles / digest)
    return digest


def test_what_was_signed_here_is_taken_and_the_key_is_its_owner_s_alone(home: Home) -> None:
    digest = made(home, "trees")
    assert bundle_folder.checked(home, digest).name == digest
    key = home.root / signing.KEY_FILE
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert len(key.read_text().strip()) == 64
    assert key.read_text().strip() not in (home.bundles / digest / signing.SIGNATURE).read_text()


def test_an_unsigned_bundle_is_refused_unless_the_settings_say_otherwise_or_a_person_vouches_for_it(home: Home) -> None:
    digest = made(home, "trees", sign=False)
    with pytest.raises(StateError, match=r"no signature.*reloop bundle sign"):
        bundle_folder.checked(home, digest)
    (home.root / "reloop.toml").write_text("[bundle]\nrequire_signature = false\n")
    bundle_folder.checked(home, digest)
    (home.root / "reloop.toml").unlink()
    signing.vouch(home, home.bundles / digest, digest)
    bundle_folder.checked(home, digest)


def test_nobody_vouches_for_a_damaged_bundle_or_for_another(home: Home) -> None:
    digest, other = made(home, "trees", sign=False), made(home, "other", sign=False)
    with pytest.raises(StateError, match="content of bundle"):
        signing.vouch(home, home.bundles / digest, other)
    (home.bundles / digest / "model.txt").write_text("treeS")
    with pytest.raises(StateError, match="differ from its manifest"):
        signing.vouch(home, home.bundles / digest, digest)


@pytest.mark.parametrize("word", ["facts", "git_commit", "abc", "sha256"])
def test_a_manifest_that_was_changed_anywhere_is_refused_its_facts_included(home: Home, word: str) -> None:
    """The digest of a bundle does not cover the commit and the libraries; the signature does."""
    digest = made(home, "trees")
    file = home.bundles / digest / publish.MANIFEST
    text = file.read_text()
    assert word in text
    file.write_text(text.replace(word, word[:-1] + "X", 1))
    with pytest.raises(StateError, match="signature of another manifest"):
        bundle_folder.checked(home, digest)


def test_an_old_bundle_with_its_good_signature_does_not_pass_for_the_new_one(home: Home) -> None:
    old, new = made(home, "old"), made(home, "new")
    shutil.rmtree(home.bundles / new)
    shutil.copytree(home.bundles / old, home.bundles / new)
    with pytest.raises(StateError, match=f"content of bundle {old[:12]}"):
        bundle_folder.checked(home, new)
    newer = made(home, "newer")
    for name in (publish.MANIFEST, signing.SIGNATURE):
        shutil.copy(home.bundles / old / name, home.bundles / newer / name)
    with pytest.raises(StateError, match=f"content of bundle {old[:12]}"):
        bundle_folder.checked(home, newer)


def test_a_bundle_of_another_environment_or_another_key_is_refused(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = made(home, "trees")
    monkeypatch.setenv("RELOOP_ENVIRONMENT", "production")
    with pytest.raises(StateError, match=r"environment 'local'.*'production'"):
        bundle_folder.checked(home, digest)
    monkeypatch.delenv("RELOOP_ENVIRONMENT")
    elsewhere = Home(tmp_path / "elsewhere")
    shutil.copytree(home.bundles, elsewhere.bundles)
    with pytest.raises(StateError, match="no key here"):
        bundle_folder.checked(elsewhere, digest)
    made(elsewhere, "its own")
    with pytest.raises(StateError, match="a signature by key"):
        bundle_folder.checked(elsewhere, digest)
    # Said to be of this key and this environment, it still does not fit.
    file = elsewhere.bundles / digest / signing.SIGNATURE
    own = next(path for path in elsewhere.bundles.iterdir() if path.name != digest) / signing.SIGNATURE
    file.write_text(json.dumps(json.loads(file.read_text()) | {"key": json.loads(own.read_text())["key"]}))
    with pytest.raises(StateError, match="signature of another manifest"):
        bundle_folder.checked(elsewhere, digest)


def test_machines_that_share_a_key_take_each_other_s_bundles(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "shared.key"
    secret.write_text("0123456789abcdef" * 4)
    secret.chmod(0o600)
    monkeypatch.setenv("RELOOP_SIGNING_KEY_FILE", str(secret))
    digest = made(home, "trees")
    assert not (home.root / signing.KEY_FILE).exists()
    monkeypatch.delenv("RELOOP_SIGNING_KEY_FILE")
    monkeypatch.setenv("RELOOP_SIGNING_KEY", secret.read_text())
    elsewhere = Home(tmp_path / "elsewhere")
    shutil.copytree(home.bundles, elsewhere.bundles)
    bundle_folder.checked(elsewhere, digest)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("", "no signature: "),
        ("{}", "no signature: KeyError"),
        ("[1]", "no signature: TypeError"),
        ('{"algorithm": "none"', "no signature: "),
    ],
)
def test_a_damaged_signature_is_none(home: Home, wrong: str, said: str) -> None:
    digest = made(home, "trees")
    (home.bundles / digest / signing.SIGNATURE).write_text(wrong)
    with pytest.raises(StateError, match=said):
        bundle_folder.checked(home, digest)


def test_a_signature_may_not_choose_its_algorithm(home: Home) -> None:
    digest = made(home, "trees")
    file = home.bundles / digest / signing.SIGNATURE
    file.write_text(json.dumps(json.loads(file.read_text()) | {"algorithm": "none", "signature": ""}))
    with pytest.raises(StateError, match="algorithm 'none'"):
        bundle_folder.checked(home, digest)


def test_a_key_that_others_may_read_or_that_can_be_guessed_is_no_key(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = made(home, "trees")
    key = home.root / signing.KEY_FILE
    key.chmod(0o644)
    with pytest.raises(StateError, match=r"mode 0644.*chmod 600"):
        bundle_folder.checked(home, digest)
    monkeypatch.setenv("RELOOP_SIGNING_KEY", "secret")
    with pytest.raises(StateError, match="a key of 6 bytes"):
        bundle_folder.checked(home, digest)


def test_two_first_signatures_at_once_use_one_key(home: Home) -> None:
    digests = [made(home, f"model {number}", sign=False) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda digest: signing.sign(home, home.bundles / digest), digests))
    for digest in digests:
        bundle_folder.checked(home, digest)
    assert sorted(path.name for path in home.root.iterdir() if "signing" in path.name) == [f".{signing.KEY_FILE}.lock", signing.KEY_FILE]
