"""The holder: an answer is one bundle's, a swap fails no request, what is damaged is refused, the way back loads nothing."""

from __future__ import annotations

import pytest
from swap_lab import Load, Telling, ask, digests, promoted, until, whole

from pipelines.config import Home
from pipelines.registry import bundle, choosing, ledger, releases, rollback, rollouts
from pipelines.serving.holder import Holder, gets_challenger
from pipelines.serving_policies import RolloutPolicy

FAST = RolloutPolicy(poll_seconds=0.02, retry_seconds=0.2)


def holding(home: Home) -> Holder:
    held = Holder(home, Telling, FAST)
    held.follow()
    return held


def serves(holder: Holder) -> int | None:
    champion = holder.held.champion
    return None if champion is None else champion.release.version


def test_before_the_first_release_nothing_answers_and_the_first_is_followed(shop: Home) -> None:
    holder = holding(shop)
    assert holder.pick(ask()) == (None, "")
    promoted(shop, 1, digests(shop)[1])
    holder.follow()
    engine, variant = holder.pick(ask())
    assert engine is not None
    assert (engine.release.version, variant) == (1, "")
    assert set(holder.swaps[-1].seconds) == {"rehearse", "load", "bind", "warm", "switch"}


def test_no_answer_fails_or_mixes_parts_while_releases_are_promoted_and_rolled_back(shop: Home) -> None:
    named = digests(shop)
    parts = {version: bundle.facts(shop, digest)["parts"] for version, digest in named.items()}
    promoted(shop, 1, named[1])
    holder = Holder(shop, Telling, FAST)
    holder.start()

    def one(turn: int) -> str | None:
        engine, _ = holder.pick(ask(f"u{turn % 97}"))
        assert engine is not None
        return whole(engine.answer(ask(f"u{turn % 97}")), named, parts)

    with Load(one) as load:
        for version in (2, 3, 4):
            promoted(shop, version, named[version])
            until(lambda version=version: serves(holder) == version)
        for version in (3, 2):
            rollback.roll_back(shop)
            until(lambda version=version: serves(holder) == version)
        until(lambda: len(load.seconds) > 1000)
    holder.stop()
    assert load.wrong == []
    assert [swap.version for swap in holder.swaps] == [1, 2, 3, 4, 3, 2]
    assert holder.swaps[4].was_loaded, "the release of before was kept for the way back"
    assert not holder.swaps[5].was_loaded


def test_a_damaged_champion_is_refused_told_and_taken_once_it_is_mended(shop: Home) -> None:
    named = digests(shop)
    promoted(shop, 1, named[1])
    holder = holding(shop)
    file = shop.bundles / named[2] / "model" / "items.parquet"
    sound = file.read_bytes()
    file.write_bytes(sound[:-1] + b"!")
    promoted(shop, 2, named[2])
    holder.follow()
    assert serves(holder) == 1
    assert "bytes that differ from its manifest" in holder.status()["refused"][named[2]]
    file.write_bytes(sound)
    until(lambda: holder.follow() or serves(holder) == 2)
    assert holder.status()["refused"] == {}


def test_a_release_that_answers_nothing_is_refused(shop: Home) -> None:
    class Broken(Telling):
        def answer(self, ask: object) -> object:  # type: ignore[override]
            raise RuntimeError("no features")

    promoted(shop, 1, digests(shop)[1])
    holder = Holder(shop, lambda serving: Broken(serving) if serving.version == 2 else Telling(serving), FAST)
    holder.follow()
    holder.pick(ask())
    promoted(shop, 2, digests(shop)[2])
    holder.follow()
    assert serves(holder) == 1
    assert "no answer to 1 requests: RuntimeError: no features" in holder.refused[digests(shop)[2]]


def test_a_pointer_that_the_ledger_did_not_set_is_not_followed(shop: Home) -> None:
    named = digests(shop)
    promoted(shop, 1, named[1])
    holder = holding(shop)
    import sqlite3

    with sqlite3.connect(shop.releases) as database:
        database.execute("UPDATE pointer SET version = 2, digest = ?, fence = 9", (named[2],))
    holder.follow()
    assert serves(holder) == 1
    assert "no entry of the ledger set" in holder.refused[named[2]]


def test_a_pointer_that_moves_between_two_looks_is_not_taken_for_a_forged_one(shop: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    named = digests(shop)
    promoted(shop, 1, named[1])
    holder = holding(shop)
    promoted(shop, 2, named[2])
    history = ledger.history

    def later(home: Home) -> list[dict[str, object]]:
        monkeypatch.setattr(ledger, "history", history)
        promoted(shop, 3, named[3])
        return history(home)

    monkeypatch.setattr(ledger, "history", later)
    holder.follow()
    assert (serves(holder), holder.refused) == (1, {})
    holder.follow()
    assert serves(holder) == 3


def test_a_database_that_is_away_leaves_what_serves(shop: Home) -> None:
    promoted(shop, 1, digests(shop)[1])
    holder = holding(shop)
    gone = shop.releases.with_suffix(".away")
    shop.releases.rename(gone)
    shop.releases.mkdir()
    holder.follow()
    assert serves(holder) == 1
    assert holder.status()["trouble"]
    shop.releases.rmdir()
    gone.rename(shop.releases)
    promoted(shop, 2, digests(shop)[2])
    holder.follow()
    assert (serves(holder), holder.trouble) == (2, "")


def test_a_process_that_starts_holds_the_way_back_and_falls_back_where_the_champion_is_damaged(shop: Home) -> None:
    named = digests(shop)
    promoted(shop, 1, named[1])
    promoted(shop, 2, named[2])
    holder = holding(shop)
    assert holder.status()["previous"] == {"version": 1, "digest": named[1]}
    (shop.bundles / named[2] / "manifest.json").write_bytes(b"{}")
    beginner = holding(shop)
    assert serves(beginner) == 1
    assert choosing.report_file(shop).is_file()


def test_a_canary_deals_users_out_for_good_and_its_engine_becomes_the_champion(shop: Home) -> None:
    named = digests(shop)
    promoted(shop, 1, named[1])
    holder = holding(shop)
    users = [f"u{at}" for at in range(4000)]
    inside: list[set[str]] = []
    now = rollouts.begin(
        shop, releases.pointer(shop), key="r", kind=ledger.CANARY, share=0.01, version=2, digest=named[2], as_of=None, body={"reasons": [], "author": "ada"}
    )  # fmt: skip
    for share in (0.01, 0.1, 0.5):
        if share > 0.01:
            assert rollouts.step(shop, now, kind=ledger.CANARY, share=share, reasons=[], author="ada", figures={})
            now = rollouts.current(shop) or now
        holder.follow()
        picked = {user: holder.pick(ask(user)) for user in users}
        inside.append({user for user, (engine, _) in picked.items() if engine is not None and engine.release.version == 2})
        assert len(inside[-1]) == pytest.approx(share * len(users), abs=4 * (share * len(users)) ** 0.5)
        assert {variant for _, variant in picked.values()} == {"rollout-2:canary", "rollout-2:champion"}
    assert inside[0] < inside[1] < inside[2]
    assert not gets_challenger(now, None), "nobody knows what side an unnamed user was on"
    challenger = holder.held.challenger
    rollouts.promote(shop, now, reasons=[], author="ada", figures={})
    holder.follow()
    assert holder.held.champion is challenger
    assert (holder.held.challenger, holder.swaps[-1].was_loaded) == (None, True)


def test_a_canary_that_cannot_be_loaded_gets_no_users(shop: Home) -> None:
    named = digests(shop)
    promoted(shop, 1, named[1])
    (shop.bundles / named[2] / "model" / "two_stage.json").write_bytes(b"{")
    rollouts.begin(
        shop, releases.pointer(shop), key="r", kind=ledger.CANARY, share=0.5, version=2, digest=named[2], as_of=None, body={"reasons": [], "author": "ada"}
    )  # fmt: skip
    holder = holding(shop)
    assert {holder.pick(ask(f"u{at}"))[1] for at in range(50)} == {""}
    assert named[2] in holder.refused
