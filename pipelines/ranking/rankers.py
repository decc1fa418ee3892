"""The line-up: every ranker by name, and how a fitted one is kept on disk.

    <folder>/ranker.json    its name, knobs, features in the order of the columns with their schema hash, the sha256 of each
                            file beside it, and of all this
    <folder>/...            what the ranker says it learnt (`Ranker.dump`)

A damaged model file aborts or hangs a native parser, or scores wrongly without a word. So the bytes
are compared with their digests here, before anything is parsed, whatever the caller has verified.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from pipelines import knobs, publish
from pipelines.errors import StateError
from pipelines.model_settings import RankingSettings
from pipelines.ranking import scale_out
from pipelines.ranking.deeds import TOLD
from pipelines.ranking.ensemble import Ensemble
from pipelines.ranking.lambdarank import LambdaRank
from pipelines.ranking.logistic import Logistic
from pipelines.ranking.neural.dcn import Dcn
from pipelines.ranking.neural.multi_task import Mmoe, SharedBottom
from pipelines.ranking.neural.network import Network
from pipelines.ranking.neural.wide_deep import WideDeep
from pipelines.ranking.pointwise import Pointwise
from pipelines.ranking.protocol import Ranker, schema_hash
from pipelines.ranking.rrf import Rrf
from pipelines.ranking.trees import Boosted
from pipelines.ranking.xendcg import XeNdcg
from pipelines.retrieval.neural import backend

RANKER_FILE: Final = "ranker.json"
BEFORE: Final = "features.json"  # what lambdarank, then the only ranker, was described by
AGAIN: Final = "run the rank stage again"

# Each ranker with the knobs it has unless the settings say otherwise; none is fitted.
RANKERS: Final[dict[str, Ranker]] = {
    "lambdarank": LambdaRank(),
    "xendcg": XeNdcg(),
    "pointwise": Pointwise(),
    "logistic": Logistic(),
    "rrf": Rrf(),
    "ensemble": Ensemble(),
    # Trained with JAX (the extra `neural`), scored without it.
    "dcn": Dcn(),
    "wide_deep": WideDeep(),
    "shared_bottom": SharedBottom(),
    "mmoe": Mmoe(),
}
# What the settings say of every ranker that has such a knob, and of all trees.
SHARED: Final = ("seed", "num_threads")
OF_SOURCES: Final = ("logistic", "rrf")  # read scores and ranks of the sources, nothing else
OF_TREES: Final = ("learning_rate", "num_leaves", "n_rounds", "min_data_in_leaf")


def make(name: str, given: Mapping[str, Any] | None = None) -> Ranker:
    """Return an unfitted ranker with some knobs changed.

    Raises:
        StateError: no ranker has that name, or a knob is unknown, of another type, or out of its range.
    """
    if name not in RANKERS:
        near = get_close_matches(name, RANKERS, n=1)
        raise StateError(
            f"ranker {name!r}",
            found="unknown",
            allowed=f"one of {list(RANKERS)}",
            hint=f"did you mean {near[0]!r}?" if near else "see ranking.ranker in the settings",
        )
    return knobs.changed(f"ranker {name!r}", RANKERS[name], given or {}, where="ranking.parameters")


def chosen(settings: RankingSettings, name: str | None = None) -> Ranker:
    """Return the ranker that the settings name, or another with the knobs they give it, unfitted; the knobs of all others are checked, too.

    Raises:
        StateError: a ranker is unknown, or a knob is unknown, of another type, or out of its range.
        ReloopError: what it is trained with is not installed.
    """
    for other in dict.fromkeys((*settings.parameters, *settings.baselines)):
        found = make(other, settings.parameters.get(other))
        if other in settings.baselines:
            _fits_here(found)
    if "retrieval" not in settings.features and (
        blind := [one for one in dict.fromkeys((name or settings.ranker, *settings.baselines)) if one in OF_SOURCES]
    ):
        raise StateError(
            "ranking.features", found=f"no 'retrieval', which {blind} read", allowed="the scores and ranks of the sources",
            hint="add 'retrieval', or take them out of ranking.ranker and ranking.baselines",
        )  # fmt: skip
    if Ensemble.name in settings.baselines:
        raise StateError("ranking.baselines", found="'ensemble'", allowed="rankers that learn on their own")
    name = name or settings.ranker
    prototype = make(name)
    known = knobs.of(type(prototype))
    said = settings.model_dump(include={*SHARED, *(OF_TREES if isinstance(prototype, Boosted) else ())})
    ranker = make(name, {knob: value for knob, value in said.items() if knob in known} | settings.parameters.get(name, {}))
    if isinstance(ranker, Ensemble):
        if ranker.ranker == Ensemble.name:
            raise StateError("ranking.parameters.ensemble.ranker", found="'ensemble'", allowed="one ranker that learns on its own")
        chosen(settings, ranker.ranker)
    _fits_here(ranker)
    return ranker


def _fits_here(ranker: Ranker) -> None:
    """Check that what the ranker is trained with is installed, importing nothing, and that it can learn what it is asked for."""
    if isinstance(ranker, Network):
        backend.require(f"ranker {ranker.name}")
    if isinstance(ranker, Boosted) and (ranker.n_workers or ranker.scheduler):
        scale_out.require()
    if isinstance(ranker, Pointwise) and ranker.outcome not in ("", *TOLD):
        raise StateError(f"ranking.parameters.{ranker.name}.outcome", found=repr(ranker.outcome), allowed=f"one of {['', *TOLD]}")


def name_of(ranker: Ranker) -> str:
    """Return the name of a ranker in the line-up."""
    return next(name for name, prototype in RANKERS.items() if type(prototype) is type(ranker))


def files(ranker: Ranker) -> dict[str, bytes]:
    """Return everything that is kept of a fitted ranker, by the name of the file.

    Raises:
        StateError: it was not fitted.
    """
    learnt, names = ranker.dump(), ranker.features
    described = {
        "ranker": name_of(ranker),
        "knobs": {knob: getattr(ranker, knob) for knob in knobs.of(type(ranker))},
        "features": list(names),
        "schema_hash": schema_hash(names),
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in learnt.items()},
    }
    return {**learnt, RANKER_FILE: publish.to_json(described | {"sha256": _digest(described)}).encode()}


def of_files(content: Mapping[str, bytes], where: str = "ranker") -> Ranker:
    """Return the fitted ranker that `files` described.

    Raises:
        StateError: a file is missing or damaged, or the features do not match their schema hash.
    """
    if RANKER_FILE not in content and BEFORE in content:
        return _of_before(content, where)
    try:
        described = json.loads(content[RANKER_FILE])
        said = described.pop("sha256")
        name, given, names = str(described["ranker"]), dict(described["knobs"]), tuple(described["features"])
        expected, schema = dict(described["files"]), described["schema_hash"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unreadable(where, error) from error
    if said != _digest(described):
        raise StateError(f"{where}/{RANKER_FILE}", found=f"sha256 {_digest(described)}", allowed=str(said), hint=AGAIN)
    learnt = {file: _intact(content, file, digest, where) for file, digest in expected.items()}
    _check_schema(names, schema, f"{where}/{RANKER_FILE}")
    return make(name, given).restore(learnt, names)


def save(folder: Path, ranker: Ranker) -> None:
    """Write a fitted ranker into a folder that the caller publishes.

    Raises:
        StateError: it was not fitted.
    """
    for name, content in files(ranker).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def load(folder: Path) -> Ranker:
    """Return the fitted ranker that `save` wrote.

    Raises:
        StateError: a file is missing or damaged, or the features do not match their schema hash.
    """
    found = {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
    if not {RANKER_FILE, BEFORE} & set(found):
        raise StateError(str(folder), found=f"no {RANKER_FILE}", allowed="a saved ranker", hint=AGAIN)
    return of_files(found, str(folder))


def _digest(described: Mapping[str, Any]) -> str:
    return hashlib.sha256(publish.to_json(described).encode()).hexdigest()


def _intact(content: Mapping[str, bytes], file: str, expected: str, where: str) -> bytes:
    """Return the bytes of a file, compared with their digest."""
    found = hashlib.sha256(content[file]).hexdigest() if file in content else "none: the file is missing"
    if found != expected:
        raise StateError(f"{where}/{file}", found=f"sha256 {found}", allowed=expected, hint=AGAIN)
    return content[file]


def _check_schema(names: tuple[str, ...], schema: str, thing: str) -> None:
    if schema_hash(names) != schema:
        raise StateError(thing, found=f"schema hash {schema_hash(names)}", allowed=schema, hint=AGAIN)


def _unreadable(where: str, error: Exception) -> StateError:
    return StateError(where, found=f"{type(error).__name__}: {error}", allowed="a saved ranker", hint=AGAIN)


def _of_before(content: Mapping[str, bytes], where: str) -> Ranker:
    """Return a lambdarank of a bundle from when there was no other ranker; to be dropped once no such bundle can be rolled back to."""
    try:
        described = json.loads(content[BEFORE])
        names, given = tuple(described["features"]), dict(described["knobs"])
        expected, schema = described["model_sha256"], described["schema_hash"]
    except (ValueError, KeyError, TypeError) as error:
        raise _unreadable(where, error) from error
    model = _intact(content, "model.txt", expected, where)
    _check_schema(names, schema, f"{where}/{BEFORE}")
    if "importance.json" not in content:
        raise StateError(f"{where}/importance.json", found="missing", allowed="a saved ranker", hint=AGAIN)
    return make("lambdarank", given).restore({"model.txt": model, "importance.json": content["importance.json"]}, names)
