"""The table of features: complete, and word for word that of the documentation."""

from __future__ import annotations

import re

import numpy as np
import pytest

from pipelines.config import REPOSITORY
from pipelines.model_settings import FEATURE_GROUPS, RankingSettings, RetrievalSettings
from pipelines.ranking.feature_table import Columns, page, specs
from pipelines.ranking.features import MADE

COLUMNS = Columns.declared(None, ("SOURCE",), ("SOURCE",))


def test_every_feature_has_a_unit_a_meaning_and_a_source():
    table = specs(COLUMNS, FEATURE_GROUPS)
    assert len(table) > 100
    for spec in table:
        assert spec.unit, spec.name
        assert len(spec.meaning) > 10, spec.name
        assert spec.source in {"retrieval", "history", "catalogue", "feature store", "request", "training window"}


def test_names_are_unique():
    names = [spec.name for spec in specs(Columns.declared(None, RetrievalSettings().sources, ("als",)), FEATURE_GROUPS)]
    assert len(names) == len(set(names))


def test_every_group_is_made_and_can_be_switched_alone():
    assert tuple(MADE) == FEATURE_GROUPS
    for group in FEATURE_GROUPS:
        assert {spec.group for spec in specs(COLUMNS, (group,))} == {group}
    with pytest.raises(ValueError, match="features"):
        RankingSettings(features=("phase_of_the_moon",))


def test_the_page_of_the_documentation_holds_this_table():
    """If this fails, write `feature_table.page(...)` between the two marks of docs/ranking/features.md."""
    text = (REPOSITORY / "docs" / "ranking" / "features.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- table -->\n(.*)<!-- end -->", text, re.DOTALL)
    assert found, "the marks are there"
    assert found[1] == page(specs(COLUMNS, FEATURE_GROUPS), RankingSettings().features)
    assert found[1].count("\n") > 100
    assert not np.any([line.endswith("| |") for line in found[1].splitlines()])
