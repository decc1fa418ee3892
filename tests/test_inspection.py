"""What `reloop doctor` finds before a run would."""

import sys

from pipelines import inspection
from pipelines.config import Home


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
