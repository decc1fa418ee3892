"""This training's ranker together with the previous champion's: fewer surprises from one release to the next.

    new/..., old/...     the files of the two rankers, each with its ranker.json

Scores of two rankers have no common unit. Within each list they are made comparable, by their z-score or by their place,
and then added by declared weights. Features that the old one reads must still be made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal, cast

import numpy as np
import numpy.typing as npt

from pipelines.datasets.interactions import Floats, Ints
from pipelines.errors import StateError
from pipelines.knobs import Range
from pipelines.ranking.protocol import Ranker, RankingRows, check_width

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Members:
    """The two rankers, each in its own right; `new` is not fitted until the ensemble is."""

    new: Ranker
    old: Ranker
    names: tuple[str, ...] | None = None  # features of the matrix, once fitted


@dataclass(frozen=True)
class Ensemble:
    """A weighted sum of a new and an old ranker.

    Attributes:
        ranker: name of the new one.
        weight: of the new one; the old one has the rest.
        scores: how they are made comparable in a list: `z_score` keeps distances, `rank` only the order.
        state: the two; `of` sets it, since the old one comes from a release and not from the rows.
    """

    ranker: str = "lambdarank"
    weight: Annotated[float, Range(0, 1)] = 0.5
    scores: Literal["z_score", "rank"] = "z_score"
    state: Members | None = None

    name: ClassVar[str] = "ensemble"

    def of(self, new: Ranker, champion: Ranker) -> Ensemble:
        """Return an ensemble of an unfitted ranker with a champion's.

        Of a champion that is an ensemble only its own new ranker is taken: an ensemble would else grow with every release.
        """
        if isinstance(champion, Ensemble):
            champion = champion._members().new
        return replace(self, state=Members(new, champion))

    def fit(self, rows: RankingRows) -> Ensemble:
        """Return a copy whose new ranker is fitted; the old one stays as it is.

        Raises:
            StateError: there is no old ranker, or it reads a feature that the rows lack.
        """
        members = self._members()
        if missing := unmet(members.old, rows.names):
            raise StateError(
                "ensemble with the previous champion",
                found=f"no {missing} among the features",
                allowed="every feature that the champion reads",
                hint="train without it (ranking.ranker), or restore the view",
            )
        return replace(self, state=Members(members.new.fit(rows), members.old, rows.names))

    def score(self, features: Floats, group: Ints | None = None) -> Doubles:
        """Return float64 [n]; comparable within a list alone.

        Raises:
            StateError: not fitted, another number of features, or lists that do not tile the rows.
        """
        members, names = self._members(), self.features
        check_width(features, names)
        sizes = np.array([len(features)]) if group is None else np.asarray(group)
        if sizes.sum() != len(features):
            raise StateError("lists to rank", found=f"{sizes.sum()} rows in lists", allowed=f"the {len(features)} rows of the matrix")
        total = np.zeros(len(features))
        for ranker, weight in ((members.new, self.weight), (members.old, 1 - self.weight)):
            columns = features[:, [names.index(name) for name in ranker.features]]
            total += weight * comparable(ranker.score(columns, sizes), sizes, self.scores)
        return total

    @property
    def features(self) -> tuple[str, ...]:
        """Return the features of its matrix, all of which the new ranker was trained on."""
        names = self._members().names
        if names is None:
            raise StateError(self.name, found="not fitted", allowed="a fitted ranker", hint="call fit first")
        return names

    @property
    def importance(self) -> dict[str, float]:
        """Return that of the two rankers, by their weights, largest first; a ranker that tells none leaves it to the other."""
        members = self._members()
        of_new, of_old = members.new.importance, members.old.importance
        mixed = {name: self.weight * of_new.get(name, 0) + (1 - self.weight) * of_old.get(name, 0) for name in {**of_new, **of_old}}
        total = sum(mixed.values())
        return {name: share / total for name, share in sorted(mixed.items(), key=lambda entry: (-entry[1], entry[0])) if share > 0}

    @property
    def size(self) -> dict[str, int]:
        """Return that of the two rankers, added up."""
        members = self._members()
        sizes = (members.new.size, members.old.size)
        return {kind: sum(size.get(kind, 0) for size in sizes) for kind in sorted({*sizes[0], *sizes[1]})}

    def dump(self) -> dict[str, bytes]:
        """Return the files of both rankers, each below a folder of its own."""
        from pipelines.ranking import rankers  # which names this class

        members, _ = self._members(), self.features
        return {
            f"{member}/{name}": content
            for member, ranker in (("new", members.new), ("old", members.old))
            for name, content in rankers.files(ranker).items()
        }

    def restore(self, files: Mapping[str, bytes], names: tuple[str, ...]) -> Ensemble:
        """Return a copy with the rankers that `dump` wrote.

        Raises:
            StateError: the files of a ranker are missing or damaged, or it reads a feature that is not there.
        """
        from pipelines.ranking import rankers

        members = [
            rankers.of_files({name.removeprefix(f"{member}/"): content for name, content in files.items() if name.startswith(f"{member}/")})
            for member in ("new", "old")
        ]
        for member in members:
            if missing := unmet(member, names):
                raise StateError(self.name, found=f"no {missing} among its features", allowed="every feature that its rankers read")
        return replace(self, state=Members(members[0], members[1], names))

    def _members(self) -> Members:
        if self.state is None:
            raise StateError(
                self.name, found="not fitted, and no champion to join", allowed="a champion's ranker", hint="see Ensemble.of; call fit then"
            )
        return self.state


def unmet(ranker: Ranker, names: tuple[str, ...]) -> list[str]:
    """Return the features that a ranker reads and that are not among some names."""
    return [name for name in ranker.features if name not in names]


def comparable(score: Doubles, sizes: Ints, how: Literal["z_score", "rank"]) -> Doubles:
    """Return scores that have one unit across rankers; each list on its own.

    Args:
        score: float64 [n].
        sizes: int [n_lists], rows of each list.
        how: `z_score`: distance from the list's mean in its standard deviations. `rank`: the share of the list's other
            candidates that are behind, less the share ahead; equal scores share their places. Either is 0 for
            a list of one, or of equal scores.
    """
    found = np.zeros(len(score))
    start = 0
    for size in cast("list[int]", sizes.tolist()):
        own = score[start : start + size]
        if how == "z_score":
            deviation = own.std()
            found[start : start + size] = (
                (own - own.mean()) / deviation if deviation > 1e-12 * max(float(np.abs(own).max(initial=0)), 1e-300) else 0.0
            )
        elif size > 1:
            ordered = np.sort(own)
            behind, level = np.searchsorted(ordered, own, "left"), np.searchsorted(ordered, own, "right")
            found[start : start + size] = (behind - (size - level)) / (size - 1)
        start += size
    return found
