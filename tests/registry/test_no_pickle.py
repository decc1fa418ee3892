"""Promise 42 and the threat model: who can write artifacts may change recommendations, and executes nothing by it."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from bundle_forge import forged
from trained_shop import FIRST

from pipelines import cycle, publish
from pipelines.config import Home
from pipelines.registry import bundle, signing

# Reports every step that could execute what lies in a file. `import` unmarshals bytecode, so `marshal.loads`
# counts only once everything has been imported: where the bundle was loaded before, unwatched.
PRELUDE = """
import json, sys
import numpy as np
from pipelines.config import Home
from pipelines.ranking import two_stage
from pipelines.registry import bundle, golden
from pipelines.window import utc
home, digests, as_of, seen = Home.from_environment(), sys.argv[1].split(","), utc(sys.argv[2]), []
FORBIDDEN = {"pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pty.spawn"}
def watch(forbidden):
    sys.addaudithook(lambda event, arguments: seen.append(event) if event in forbidden else None)
def ask(digest):
    folder = bundle.folder(home, digest)
    golden.check(folder / "golden", golden.Parts.load(folder / "model"), 1e-9)
def answer(digest):
    model = bundle.load(home, digest)
    two_stage.rank_users(home, model, np.array(["someone-new", *sys.argv[3:]]), as_of, 5)
    for step in (ask, lambda digest: bundle.reference(home, digest), lambda digest: bundle.facts(home, digest)):
        step(digest)
"""
SOUND = """
answer(digests[0])
watch(FORBIDDEN | {"marshal.loads"})
answer(digests[0])
print("SAID", json.dumps({"seen": seen}))
"""
PLANTED = """
watch(FORBIDDEN)
refused = []
for digest in digests:
    for step in (answer, ask, lambda digest: bundle.reference(home, digest), lambda digest: bundle.facts(home, digest)):
        try:
            step(digest)
        except Exception:
            refused.append(digest)
print("SAID", json.dumps({"seen": seen, "refused": len(set(refused))}))
"""


class Payload:
    """What a pickle does when somebody is so kind as to load it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def said(home: Home, script: str, digests: list[str]) -> dict[str, object]:
    answer = subprocess.run(
        [sys.executable, "-c", PRELUDE + script, ",".join(digests), FIRST.isoformat()],
        capture_output=True, text=True, check=False, env={**os.environ, "RELOOP_HOME": str(home.root)},
    )  # fmt: skip
    assert "SAID" in answer.stdout, answer.stderr[-2000:]
    found: dict[str, object] = json.loads(answer.stdout.split("SAID ")[1])
    return found


@pytest.mark.slow  # `test_bundle` has the quick one: an error at the first class that is unpickled
def test_loading_and_scoring_unpickle_nothing_and_start_nothing(fresh: Home) -> None:
    assert said(fresh, SOUND, [cycle.records(fresh, FIRST, "bundle")[0]["digest"]]) == {"seen": []}


@pytest.mark.slow
def test_a_payload_in_every_slot_of_a_bundle_never_executes_whoever_signed_it(fresh: Home, tmp_path: Path) -> None:
    """Each file is replaced by a pickle and the whole signed anew, as somebody with every right could: loads fail, nothing runs."""
    digest = cycle.records(fresh, FIRST, "bundle")[0]["digest"]
    folder = fresh.bundles / digest
    apart = {publish.MANIFEST, signing.SIGNATURE, bundle.FACTS_FILE, f"{bundle.MODEL_FOLDER}/{publish.MANIFEST}"}
    slots = sorted({str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} - apart)
    assert len(slots) > 12
    mark = tmp_path / "executed"
    payload = pickle.dumps(Payload(mark))
    planted = [
        forged(fresh, digest, lambda out, name=name: (out / name).write_bytes(payload) and None, honest_parts=True) for name in slots
    ]
    assert said(fresh, PLANTED, planted) == {"seen": [], "refused": len(slots)}
    assert not mark.exists()
    pickle.loads(payload)
    assert mark.exists(), "the payload does work where it is loaded"
