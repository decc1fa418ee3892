"""What `reloop doctor` finds before a run would."""

import shutil
import sys
from types import SimpleNamespace

import pointer_lab
import pytest

from pipelines import inspection
from pipelines.config import Home
from pipelines.registry import signing


def test_a_source_that_cannot_be_fitted_here_is_found_with_the_extra_to_install(home: Home, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", None)  # as if it were not installed
    home.root.mkdir(parents=True)
    settings = home.root / "reloop.toml"
    settings.write_text('[retrieval]\nsources = ["popular", "sasrec", "text_embedding", "sasrek"]\n')
    found = {finding.name: finding for finding in inspection.examine(home)}["retrieval sources"]
    assert not found.ok
    assert "pip install 'reloop[neural]'" in found.text
    assert "text_embedding: encoder: none is set" in found.text
    assert "source 'sasrek': unknown" in found.text
    settings.write_text('[retrieval]\nsources = ["popular"]\n')
    assert str({finding.name: finding for finding in inspection.examine(home)}["retrieval sources"]) == "ok: 1 that can be fitted here"


def test_a_wrong_ranker_or_knob_of_one_is_found_before_anything_is_trained(home: Home):
    home.root.mkdir(parents=True)
    for wrong, said in (
        ('ranker = "lambdarnak"', "did you mean 'lambdarank'"),
        ("[ranking.parameters.pointwise]\nnum_leaves = 1", "at least 2"),
        ('baselines = ["popular"]', "ranker 'popular': unknown"),
    ):
        (home.root / "reloop.toml").write_text(f"[ranking]\n{wrong}\n")
        found = {finding.name: finding for finding in inspection.examine(home)}["settings"]
        assert not found.ok
        assert said in found.text


def test_a_knob_that_cannot_be_and_a_misspelt_source_among_the_parameters_are_found(home: Home):
    home.root.mkdir(parents=True)
    (home.root / "reloop.toml").write_text(
        '[retrieval]\nsources = ["popular"]\n[retrieval.parameters.alz]\nalpha = 1\n[retrieval.parameters.als]\nn_factors = 0\n'
    )
    found = {finding.name: finding for finding in inspection.examine(home)}["retrieval sources"]
    assert not found.ok
    assert "source 'alz': unknown" in found.text
    assert "did you mean 'als'?" in found.text
    assert "source 'als': knob n_factors: 0; expected a whole number at least 1" in found.text


def test_a_misspelt_incumbent_of_the_gate_is_found_instead_of_guarding_nothing(home: Home):
    home.root.mkdir(parents=True)
    for wrong, said in (('incumbents = ["item_kn"]', "did you mean 'item_knn'"), ('baseline = "popluar"', "did you mean 'popular'")):
        (home.root / "reloop.toml").write_text(f"[gate]\n{wrong}\n")
        found = {finding.name: finding for finding in inspection.examine(home)}["settings"]
        assert not found.ok
        assert said in found.text


def test_a_disk_that_fills_up_is_warned_of_before_it_is_full(home: Home, monkeypatch: pytest.MonkeyPatch):
    home.root.mkdir()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3 << 30))
    found = {finding.name: finding for finding in inspection.examine(home)}["state folder"]
    assert found.ok
    assert str(found).startswith("warning: ")
    assert "3 GiB free, less than the 5 GiB to keep free: see what `reloop gc` would collect" in str(found)


@pytest.mark.parametrize(("version", "name"), [(2, "champion"), (1, "previous release")])
def test_a_release_that_was_not_signed_here_is_found_before_it_is_needed(home: Home, version: int, name: str):
    """The one that serves, and the one that a rollback would go back to."""
    first, second = pointer_lab.release(home, 1), pointer_lab.release(home, 2)
    found = {finding.name: finding for finding in inspection.examine(home)}
    assert found["champion"].ok
    assert "signed here" in found["champion"].text
    assert found["previous release"].text.startswith("version 1, whole")
    digest = {1: first.digest, 2: second.digest}[version]
    (home.bundles / str(digest) / signing.SIGNATURE).unlink()
    found = {finding.name: finding for finding in inspection.examine(home)}
    assert not found[name].ok
    assert "no signature" in found[name].text
    assert all(finding.ok for finding in found.values() if finding.name in {"champion", "previous release"} - {name})
