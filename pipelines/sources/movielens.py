"""MovieLens in its four layouts: 100K (u.data), 1M and 10M (ratings.dat), and latest-small, 20M, 25M, 32M (ratings.csv)."""

from __future__ import annotations

from typing import Any, Final

from pipelines.errors import SourceError
from pipelines.sources import mapping
from pipelines.sources.files import Place
from pipelines.sources.table import Origin

GENRES: Final = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
OCCUPATIONS: Final = (
    "other", "academic/educator", "artist", "clerical/admin", "college/grad student", "customer service", "doctor/health care",
    "executive/managerial", "farmer", "homemaker", "K-12 student", "lawyer", "programmer", "retired", "sales/marketing", "scientist",
    "self-employed", "technician/engineer", "tradesman/craftsman", "unemployed", "writer",
)  # fmt: skip
AGES: Final = (18, 25, 35, 45, 50, 56)  # the bands of the 1M set, used for every layout
YEAR: Final = r"\((\d{4})\)\s*$"
FIRST_GENRE: Final = r"^[^|(]+"  # "(no genres listed)" has none


def origin(place: Place) -> Origin:
    """Return how the layout found in a folder or zip is read.

    Raises:
        SourceError: no ratings file of a known layout.
    """
    names = {entry.name for entry in place.entries}
    layouts = {"u.data": _first, "ratings.dat": _second, "ratings.csv": _third}
    for name, layout in layouts.items():
        if name in names:
            return Origin(mapping.parse(layout(names), f"movielens ({name})"))
    raise SourceError(
        str(place.root),
        found=f"none of {list(layouts)} among {place.names()}",
        allowed="a MovieLens folder or zip",
        hint="--path is the folder, not a file in it",
    )


def _events(user: str, item: str, rating: str, at: str) -> dict[str, Any]:
    return {
        "file": "ratings",
        "user_id": user,
        "item_id": item,
        "event_type": {"constant": "rating"},
        "value": rating,
        "event_at": {"column": at, "format": "epoch_s"},
    }


def _items(genres: dict[str, Any]) -> dict[str, Any]:
    return {
        "file": "movies",
        "item_id": "movie",
        "title": "title",
        "category": {**genres, "pattern": FIRST_GENRE},
        "attributes": {"genres": {**genres, "pattern": r"^[^(].*"}, "year": {"column": "title", "pattern": YEAR}},
    }


def _first(_: set[str]) -> dict[str, Any]:
    """Return the mapping of the 100K layout: genres are flags, users have ages."""
    plain = {"header": False, "quote": "none", "separator": "|", "encoding": "latin-1"}
    return {
        "files": {
            "ratings": {**plain, "path": "u.data", "separator": "\t", "columns": ["user", "movie", "rating", "at"]},
            "movies": {**plain, "path": "u.item", "columns": ["movie", "title", "released", "video", "url", *GENRES]},
            "users": {**plain, "path": "u.user", "columns": ["user", "age", "gender", "occupation", "zip"]},
        },
        "events": _events("user", "movie", "rating", "at"),
        "items": _items({"flags": list(GENRES[1:])}),
        "users": {
            "file": "users",
            "user_id": "user",
            "age_band": {"column": "age", "bands": AGES},
            "attributes": {"gender": "gender", "occupation": "occupation"},
        },
    }


def _second(names: set[str]) -> dict[str, Any]:
    """Return the mapping of the 1M layout, and of 10M, which has no users and is written in UTF-8."""
    with_users = "users.dat" in names
    plain = {"header": False, "separator": "::", "encoding": "latin-1" if with_users else "utf-8"}
    files = {
        "ratings": {**plain, "path": "ratings.dat", "columns": ["user", "movie", "rating", "at"]},
        "movies": {**plain, "path": "movies.dat", "columns": ["movie", "title", "genres"]},
    }
    content: dict[str, Any] = {"files": files, "events": _events("user", "movie", "rating", "at"), "items": _items({"column": "genres"})}
    if with_users:
        files["users"] = {**plain, "path": "users.dat", "columns": ["user", "gender", "age", "occupation", "zip"]}
        content["users"] = {
            "file": "users",
            "user_id": "user",
            "age_band": {"column": "age", "bands": AGES},
            "attributes": {"gender": "gender", "occupation": {"column": "occupation", "values": dict(enumerate(OCCUPATIONS))}},
        }
    return content


def _third(_: set[str]) -> dict[str, Any]:
    """Return the mapping of the layouts in CSV."""
    items = _items({"column": "genres"}) | {"item_id": "movieId"}
    return {
        "files": {"ratings": {"path": "ratings.csv"}, "movies": {"path": "movies.csv"}},
        "events": _events("userId", "movieId", "rating", "timestamp"),
        "items": items,
    }
