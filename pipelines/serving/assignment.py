"""Which arm of which experiment a unit is in: a function of declaration and unit id alone, the same in every process for good.

Experiments are declared in `experiments.toml` of the state folder, a table an experiment; the file is read by the service alone, so a
new experiment touches no setting of a training run:

    [shorter-memory]
    layer = "ranking"                      # experiments of one layer never share a unit; layers are independent
    slice = [0.0, 0.5]                     # of its layer
    primary = "ctr"
    guardrails = { revenue_per_user = 0.02 }
    start = 2025-03-03T00:00:00Z
    end = 2025-03-31T00:00:00Z
    [shorter-memory.arms.control]          # the first arm is control
    [shorter-memory.arms.shorter]
    weight = 1.0
    version = 12                           # what the arm changes: a model version, the rules of re-ranking, exploration, or `interleave`

A unit's place in a layer is a hash of (layer, unit), so growing a slice moves nobody who is in it. Its arm is the one with the largest
of w-weighted draws -ln(u) / w, smallest first, u a hash of (salt, arm, unit): weighted rendezvous hashing (Thaler, Ravishankar, IEEE/ACM
Transactions on Networking 6, 1998; weights: Schindelhauer, Schomaker, SPAA 2005). Another arm takes its share from the others and moves nobody else.
"""

from __future__ import annotations

import hashlib
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import combinations
from typing import Annotated, Final, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from pipelines import misfit
from pipelines.config import Home
from pipelines.errors import StateError
from pipelines.frozen import Policy
from pipelines.model_settings import ExplorationPolicy
from pipelines.rerank_policies import RerankSettings

FILE: Final = "experiments.toml"
NAME: Final = r"^[a-z0-9][a-z0-9_-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME)]
Unit = Literal["user", "request"]


class Arm(Policy):
    """One way to answer; an arm that changes nothing answers as the champion does."""

    weight: float = Field(default=1.0, gt=0, le=1e6)
    version: int | None = Field(default=None, ge=1)  # model version that answers
    rerank: RerankSettings | None = None  # rules of re-ranking, instead of those of the release
    exploration: ExplorationPolicy | None = None  # which places new items may get, instead of the settings'
    interleave: tuple[Name, Name] | None = None  # two arms whose lists are drafted into one, team a and team b

    @model_validator(mode="after")
    def _one_change(self) -> Self:
        """Refuse an arm that interleaves and changes something itself."""
        if self.interleave and (self.version, self.rerank, self.exploration) != (None, None, None):
            raise ValueError("an arm with `interleave` changes nothing itself")
        return self


class Experiment(Policy):
    """One experiment, as it was declared before it began."""

    layer: Name = "default"
    unit: Unit = "user"
    slice: tuple[float, float] = (0.0, 1.0)  # of the layer, half-open
    salt: str = ""  # of the arms; the experiment's name where empty: say another one to deal all units anew
    arms: dict[Name, Arm]
    start: datetime | None = None  # first instant, UTC; none: always
    end: datetime | None = None  # first instant no longer
    primary: str = "ctr"
    guardrails: dict[str, Annotated[float, Field(ge=0, lt=1)]] = Field(default_factory=dict)  # metric -> relative loss that is still taken
    planned_units: int = Field(default=10_000, ge=100)  # an arm, by its end: where the test that may be read every day is most powerful

    @field_validator("start", "end")
    @classmethod
    def _in_utc(cls, value: datetime | None) -> datetime | None:
        """Return a moment in UTC; one without a zone is."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)

    @model_validator(mode="after")
    def _can_be_run(self) -> Self:
        """Refuse slices outside the layer, a single arm, arms that interleave what is not there, and time that runs backwards."""
        low, high = self.slice
        if not 0 <= low < high <= 1:
            raise ValueError(f"slice is [{low:g}, {high:g}], outside [0, 1] or empty")
        if len(self.arms) < 2:
            raise ValueError(f"{len(self.arms)} arms; at least two, the first of which is control")
        for name, arm in self.arms.items():
            if arm.interleave and (set(arm.interleave) - set(self.arms) or len(set(arm.interleave)) < 2 or name in arm.interleave):
                raise ValueError(f"arm {name} interleaves {list(arm.interleave)}, which are not two other arms")
        if self.start and self.end and not self.start < self.end:
            raise ValueError("start is not before end")
        return self

    @property
    def control(self) -> str:
        """Return the arm that the others are compared with."""
        return next(iter(self.arms))

    def runs(self, at: datetime) -> bool:
        """Return whether units are assigned at a moment."""
        return (self.start is None or self.start <= at) and (self.end is None or at < self.end)


@dataclass(frozen=True)
class Assigned:
    """The arm of one experiment that a unit is in."""

    experiment: str
    arm: str
    changes: Arm

    @property
    def label(self) -> str:
        """Return what is logged: `experiment:arm`."""
        return f"{self.experiment}:{self.arm}"


def label(assigned: Iterable[Assigned]) -> str:
    """Return the variant of an answer: a label an experiment, joined by `|`; empty where the unit is in none."""
    return "|".join(one.label for one in assigned)


def arm_in(variant: str | None, experiment: str) -> str | None:
    """Return the arm of an experiment that a logged variant names, if it names one."""
    for part in (variant or "").split("|"):
        name, found, arm = part.partition(":")
        if found and name == experiment:
            return arm
    return None


def fraction(*words: str) -> float:
    """Return a number in (0, 1) that depends on some words alone, uniform over whatever varies; parts cannot run into each other."""
    sink = hashlib.blake2b(digest_size=8)
    for word in words:
        raw = word.encode("utf-8", "surrogatepass")
        sink.update(len(raw).to_bytes(4, "big") + raw)
    return ((int.from_bytes(sink.digest(), "big") >> 11) + 0.5) / (1 << 53)


def arm_of(name: str, experiment: Experiment, unit_id: str) -> str:
    """Return the arm that a unit of an experiment's slice is in."""
    salt = experiment.salt or name
    return min(experiment.arms, key=lambda arm: -math.log(fraction("arm", salt, arm, unit_id)) / experiment.arms[arm].weight)


class Experiments:
    """What is declared; `assign` deals it out."""

    def __init__(self, declared: Mapping[str, Experiment]) -> None:
        """Refuse experiments that could share a unit.

        Raises:
            StateError: two of one layer overlap in slice and time, or differ in what a unit is.
        """
        self.declared = dict(declared)
        for (one, a), (other, b) in combinations(self.declared.items(), 2):
            if a.layer != b.layer:
                continue
            if a.unit != b.unit:
                raise StateError(f"layer {a.layer}", found=f"{one} by {a.unit}, {other} by {b.unit}", allowed="one unit a layer")
            apart = (a.end and b.start and a.end <= b.start) or (b.end and a.start and b.end <= a.start)
            if not apart and max(a.slice[0], b.slice[0]) < min(a.slice[1], b.slice[1]):
                raise StateError(
                    f"layer {a.layer}",
                    found=f"{one} in {list(a.slice)} and {other} in {list(b.slice)} at the same time",
                    allowed="slices or times that do not overlap",
                    hint="give one of them another slice, or another layer if what they change is independent",
                )

    def assign(self, units: Mapping[Unit, str | None], at: datetime) -> tuple[Assigned, ...]:
        """Return the experiments that a request is in, one a layer at most, in the order of declaration.

        Args:
            units: the request's ids; an experiment whose unit is unknown or empty takes no part.
            at: the moment of the request.
        """
        found: list[Assigned] = []
        for name, experiment in self.declared.items():
            unit_id = units.get(experiment.unit)
            if not unit_id or not experiment.runs(at):
                continue
            low, high = experiment.slice
            if low <= fraction("layer", experiment.layer, unit_id) < high:
                arm = arm_of(name, experiment, unit_id)
                found.append(Assigned(name, arm, experiment.arms[arm]))
        return tuple(found)


def parse(text: str, where: str = FILE) -> Experiments:
    """Return the experiments of a TOML text.

    Raises:
        StateError: the text is not TOML, or declares what cannot be run.
    """
    allowed = "a table for each experiment, as in docs/serving/experiments.md"
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise StateError(where, found=str(error), allowed=allowed) from error
    declared: dict[str, Experiment] = {}
    for name, table in found.items():
        if not re.fullmatch(NAME, name):
            raise StateError(where, found=f"{name!r} names no experiment", allowed="small letters, digits, - and _")
        try:
            declared[name] = Experiment.model_validate(table)
        except ValidationError as error:
            raise StateError(where, found=misfit.said(error, Experiment, f"{name}."), allowed=allowed) from error
    return Experiments(declared)


def load(home: Home) -> Experiments:
    """Return the experiments that a state folder declares; none where there is no file.

    Raises:
        StateError: as `parse`.
    """
    file = home.experiments
    if not file.is_file():
        return Experiments({})
    try:
        return parse(file.read_text(encoding="utf-8"), str(file))
    except UnicodeDecodeError as error:
        raise StateError(str(file), found=str(error), allowed="UTF-8") from error
