"""Every source is one line of settings away: its name in `retrieval.sources`, and the same command fits it."""

import json
from dataclasses import fields

import pytest

from pipelines import config, cycle, lake
from pipelines.errors import ReloopError
from pipelines.retrieval import fitting, lineup
from pipelines.retrieval.neural.training import Training
from pipelines.retrieval.protocol import Demanding
from pipelines.sources.request import World
from pipelines.sources.simulator import Shop
from pipelines.window import Window, utc

START, AS_OF = utc("2025-01-06"), utc("2025-02-03")
QUICK = {"n_epochs": 1, "n_factors": 8, "n_negatives": 16, "n_rounds": 1}
NEEDS = {"text_embedding": "encoder: none is set"}
HEAVY = {name for name, source in lineup.SOURCES.items() if isinstance(source, Training)} | {"spark_als"}


@pytest.mark.parametrize("source", [pytest.param(name, marks=pytest.mark.slow) if name in HEAVY else name for name in lineup.SOURCES])
def test_a_source_is_one_line_of_settings_away(home, source):
    shop = Shop(World(seed=7, users=80, items=40, events_per_day=120))
    window = Window(START, AS_OF)
    lake.land_tables(home, events=shop.events(window), items=shop.items(window), users=shop.users(window), source="simulated")
    knobs = {knob.name: QUICK[knob.name] for knob in fields(lineup.SOURCES[source]) if knob.name in QUICK}
    lines = [
        f"sources = {json.dumps([source])}",
        f"[retrieval.parameters.{source}]",
        *(f"{name} = {value}" for name, value in knobs.items()),
    ]
    (home.root / "reloop.toml").write_text("[retrieval]\n" + "\n".join(lines) + "\n")
    assert config.load(home).retrieval.sources == (source,)
    if source in NEEDS:  # a second line names what the source cannot have by default; the command says so
        with pytest.raises(ReloopError, match=NEEDS[source]):
            fitting.fit(home, AS_OF, source)
        return
    try:
        if isinstance(lineup.SOURCES[source], Demanding):
            lineup.SOURCES[source].require()
    except ReloopError as error:
        pytest.skip(str(error))
    fitting.fit(home, AS_OF, source)
    (record,) = cycle.records(home, AS_OF, "retrieval")
    assert (record["state"], record["key"]) == ("done", source)
    assert lineup.load(fitting.folder(home, AS_OF, source)).state is not None
