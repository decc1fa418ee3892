"""What anybody may read of a process that is in trouble names the thing and the kind of error, never paths, hosts or users."""

from __future__ import annotations

from types import SimpleNamespace

from pipelines.serving.assembly import NOBODY, House


def test_readiness_tells_what_is_wrong_and_no_text_of_an_error():
    secret = "'/srv/shop/var/features/0007' host=db.internal user=reloop"
    holder = SimpleNamespace(
        refused={"a" * 64: f"FileNotFoundError: {secret}", "b" * 64: f"the pointer names {secret}: no"},
        trouble=f"OperationalError: {secret}",
    )
    knowledge = SimpleNamespace(trouble=f"StateError: {secret}", catalogue=None)
    breaker = SimpleNamespace(name="online store", state="open")
    made = SimpleNamespace(holder=holder, knowledge=knowledge, _breakers=lambda: [breaker], release=lambda: NOBODY)
    ready, reasons, release = House.ready(made)
    assert (ready, release) == (False, NOBODY)
    assert reasons == [
        "version of aaaaaaaaaaaa refused: FileNotFoundError, see the log",
        "version of bbbbbbbbbbbb refused: see the log",
        "releases: OperationalError, see the log",
        "snapshots: StateError, see the log",
        "online store is left alone",
        "no catalogue yet: run `reloop features`",
        "no release yet",
    ]
