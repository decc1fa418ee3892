"""The verbs of a rollout, as people and machines read them."""

from __future__ import annotations

import json
from typing import Any

from swap_lab import Telling, canary, digests, promoted
from typer.testing import CliRunner

from pipelines.cli.entry import app
from pipelines.config import Home
from pipelines.registry import ledger, rollouts
from pipelines.serving.holder import Holder
from pipelines.serving_policies import RolloutPolicy


def said(home: Home, *words: str, code: int = 0) -> Any:
    found = CliRunner().invoke(app, [*words, "--home", str(home.root), "--json"])
    assert found.exit_code == code, found.output
    return json.loads(found.stdout)


def test_a_rollout_is_shown_and_led_by_hand_with_its_reasons_on_record(shop: Home) -> None:
    promoted(shop, 1, digests(shop)[1])
    assert said(shop, "rollout")["rollout"] == "none"
    canary(shop, 2, 0.01)
    holder = Holder(shop, Telling, RolloutPolicy())
    holder.follow()
    shown = said(shop, "rollout")
    assert (shown["rollout"]["version"], shown["rollout"]["share"], shown["rollout"]["author"]) == (2, 0.01, "ada")
    ((_, held),) = shown["processes"].items()
    assert (held["champion"]["version"], held["challenger"]["version"]) == (1, 2)
    assert "Processes" in CliRunner().invoke(app, ["rollout", "--home", str(shop.root)]).stdout
    assert said(shop, "rollout", "step", "--reason", "calm") == {"version": 2, "share": 0.1, "done": True}
    assert said(shop, "rollout", "end", "--reason", "enough", "--author", "ben")["done"]
    last = ledger.history(shop)[-1]
    assert (last["kind"], last["reasons"], last["author"]) == (ledger.ENDED, ["enough"], "ben")
    assert rollouts.current(shop) is None
