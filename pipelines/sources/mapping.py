"""The mapping file: how any table is turned into the canonical ones, said in YAML and checked before a row is read.

`docs/your-own-data.md` explains every key to the person who writes one. Nothing in a mapping is
ever pasted into SQL: names are looked up among the columns that the file really has, and everything
else becomes a quoted literal (`pipelines.sources.expressions`).
"""

from __future__ import annotations

import re
from datetime import timedelta
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from pipelines import columns as c
from pipelines import misfit
from pipelines.config import Settings
from pipelines.errors import MappingError
from pipelines.frozen import Frozen
from pipelines.window import utc

LARGEST: Final = 1 << 20  # bytes of a mapping file
DEEPEST: Final = 100  # brackets open at once
BRACKETS: Final = {"[": 1, "{": 1, "]": -1, "}": -1}
STEP: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(second|minute|hour|day|week)s?")

_T = TypeVar("_T")


def _text(value: Any) -> Any:
    """Return a YAML scalar as the text a CSV would hold: true for yes/True, 1 for 1."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


def _texts(value: Any) -> Any:
    return [_text(entry) for entry in value] if isinstance(value, list | tuple) else [_text(value)]


def _keys(value: Any) -> Any:
    return {_text(key): _text(entry) for key, entry in value.items()} if isinstance(value, dict) else value


def _zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"{value!r} is no time zone; use a name such as Europe/London, or UTC") from error
    return value


def _step(value: Any) -> Any:
    match = STEP.fullmatch(value.strip()) if isinstance(value, str) else None
    if not match:
        raise ValueError("write a step as a number and a unit, such as 1 day, 7 days, 30 minutes")
    return timedelta(**{f"{match[2]}s": float(match[1])})


def _moment(value: Any) -> Any:
    return str(utc(value if isinstance(value, str) else value.isoformat()).isoformat())


def _pattern(value: str) -> str:
    """Check a pattern as far as Python can; DuckDB's RE2, which runs it, has no backtracking to abuse."""
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"{value!r} is no regular expression: {error}") from error
    return value


Text = Annotated[str, BeforeValidator(_text)]
Texts = Annotated[tuple[str, ...], BeforeValidator(_texts)]
Values = Annotated[dict[str, str], BeforeValidator(_keys)]
Pattern = Annotated[str, AfterValidator(_pattern)]
Zone = Annotated[str, AfterValidator(_zone)]
Moment = Annotated[str, BeforeValidator(_moment)]
Step = Annotated[timedelta, BeforeValidator(_step)]


class FileSpec(Frozen):
    """One table of the source: which files hold it and how they are written."""

    path: Texts = ()  # a name, a pattern, a folder, or a list of them; none: what --path leads to
    separator: str | None = None  # one to four characters; None: found out from the first line
    quote: str = '"'  # "none" where quotes are ordinary characters
    escape: str | None = None  # None: a quote inside quotes is doubled
    encoding: str | None = None  # None: UTF-8, or what a byte-order mark says
    header: bool = True
    columns: Texts = ()  # names, where the file has no header or a useless one
    skip_lines: Annotated[int, Field(ge=0, le=10_000)] = 0
    decimal: Literal[".", ","] = "."
    thousands: Literal["", ".", ",", " ", "'"] = ""
    nulls: Texts = ("", "NULL", "null", "\\N", "NaN", "nan")
    explode: Explode | None = None

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.decimal == self.thousands:
            also = "" if "decimal" in self.model_fields_set else "; where `thousands` is said, say `decimal`, too"
            raise ValueError(f"decimal and thousands are the same character, {self.decimal!r}{also}")
        if not self.header and not self.columns:
            raise ValueError("a file without a header needs `columns: [...]`, a name for each")
        if len(set(self.columns)) < len(self.columns):
            raise ValueError("columns: a name stands twice")
        if self.separator is not None and not 1 <= len(self.separator) <= 4:
            raise ValueError("a separator has one to four characters")
        if self.quote != "none" and len(self.quote) != 1:
            raise ValueError("quote is one character, or none")
        return self


class Explode(Frozen):
    """A column that holds several values in one cell: the row is repeated for each."""

    column: Text
    separator: str = ","


FileSpec.model_rebuild()


class Value(Frozen):
    """A text: exactly one of `column`, `columns`, `first_of`, `flags`, `constant`, then what is done to it, in this order."""

    column: Text | None = None
    columns: Texts = ()  # joined, for ids made of several columns; null if any is null
    first_of: Texts = ()  # the first that is not null
    flags: Texts = ()  # the names of those of these columns that hold 1, joined by "|": one-hot genres
    constant: Text | None = None
    joined_by: str = "-"
    pattern: Pattern | None = None  # keep what its first group (or the whole of it) matches, else null
    case: Literal["keep", "lower", "upper"] = "keep"
    values: Values = Field(default={})  # as the file says it -> as we say it; of event_type, all that is not named is refused
    bands: tuple[float, ...] = ()  # limits that turn a number into a band such as 25-34
    default: Text | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum([self.column is not None, bool(self.columns), bool(self.first_of), bool(self.flags), self.constant is not None]) != 1:
            raise ValueError("say one of column, columns, first_of, flags or constant")
        return self


class Currency(Frozen):
    """Amounts in several currencies, turned into one."""

    column: Text
    rates: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]]


class Number(Frozen):
    """A number: `column`, the product of several (quantity x price), or a constant; times `factor`."""

    column: Text | None = None
    product: Texts = ()
    constant: float | None = None
    factor: Annotated[float, Field(allow_inf_nan=False)] = 1.0  # 0.01 where the file counts cents
    currency: Currency | None = None
    default: float | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum([self.column is not None, bool(self.product), self.constant is not None]) != 1:
            raise ValueError("say one of column, product or constant")
        return self


class When(Frozen):
    """A moment: read from columns, or made from an order where the source has no clock."""

    column: Text | None = None
    columns: Texts = ()  # date and time apart: joined by one space before `format` is applied
    format: Texts = ("auto",)  # auto, epoch_s, epoch_ms, epoch_us, or strptime formats tried in order
    zone: Zone = "UTC"  # of times that do not say theirs; the file's own offset wins
    earliest: Moment = "1971-01-01T00:00:00+00:00"  # outside these two a time counts as unreadable:
    latest: Moment = "2100-01-01T00:00:00+00:00"  # zeros and far futures stand for "unknown" in most systems
    sequence: Text | None = None  # a number that rises with time; `row` is the order in the file
    per: Texts = ()  # the columns whose owner the numbers belong to (the user)
    step: Step = timedelta(days=1)  # one number further is this much later
    gap_days: Text | None = None  # instead of step: the column that says how many days passed since the number before
    hour: Text | None = None  # hour of the day, 0 to 23, where the file has only that
    start: Moment = "2020-01-01T00:00:00+00:00"
    align: Literal["start", "end"] | None = None  # do owners begin together, or end together (the default with `per`)?
    tie: Text | None = None  # rank within a moment, added as microseconds, so that order survives equal times

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum([self.column is not None, bool(self.columns), self.sequence is not None]) != 1:
            raise ValueError("say one of column, columns or sequence")
        if self.gap_days and not self.per:
            raise ValueError("gap_days needs `per`: whose days are they?")
        return self


def _wrapped(key: str, kind: type[_T]) -> Any:
    """Return a validator that lets a bare column name, or a list of them, stand for the long form."""

    def wrap(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return {key: value}
        return value if isinstance(value, dict | kind) else {"column": value}

    return BeforeValidator(wrap)


TextField = Annotated[Value, _wrapped("columns", Value)]
NumberField = Annotated[Number, _wrapped("product", Number)]
TimeField = Annotated[When, _wrapped("columns", When)]


class Skip(Frozen):
    """A kind of row that is no event: kept in quarantine under `reason`."""

    column: Text
    reason: Annotated[str, Field(min_length=1, max_length=80, pattern=r"^[A-Za-z0-9_ .,:/-]+$")]
    missing: bool = False
    equals: Texts = ()
    differs: Texts = ()
    matches: Pattern | None = None  # anywhere in the value
    lacks: Pattern | None = None  # no match anywhere in a value that is there
    below: float | None = None
    above: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        tests = [self.missing, self.equals, self.differs, self.matches, self.lacks, self.below is not None, self.above is not None]
        if sum(map(bool, [*tests, self.at_most is not None])) != 1:
            raise ValueError("say one of missing, equals, differs, matches, lacks, below, above or at_most")
        return self


class Join(Frozen):
    """Another file whose columns are wanted on the rows of this one, found by a key it holds once."""

    file: str
    on: Annotated[Values, BeforeValidator(lambda v: {k: k for k in v} if isinstance(v, list) else {v: v} if isinstance(v, str) else v)]


class EventsMap(Frozen):
    """Where the columns of `events` come from."""

    file: str | None = None
    join: tuple[Join, ...] = ()
    skip: tuple[Skip, ...] = ()
    event_id: TextField | None = None  # None: the digest of the whole row, so exact repeats are one event
    user_id: TextField
    item_id: TextField
    event_type: TextField
    event_at: TimeField
    received_at: TimeField | None = None  # None: learnt when it happened
    value: NumberField | None = None
    quantity: NumberField | None = None
    session_id: TextField | None = None
    device: TextField | None = None
    request_id: TextField | None = None

    @model_validator(mode="after")
    def _one_clock(self) -> Self:
        if self.received_at is not None and self.received_at.sequence is not None:
            raise ValueError("received_at: a sequence can stand for event_at alone")
        return self

    @model_validator(mode="after")
    def _types(self) -> Self:
        said = [*self.event_type.values.values(), self.event_type.default, self.event_type.constant]
        if unknown := sorted({name for name in said if name is not None and name not in c.EVENT_TYPES}):
            raise ValueError(f"event_type: {unknown} unknown; allowed are {list(c.EVENT_TYPES)}")
        return self


class ItemsMap(Frozen):
    """Where the columns of `items` come from; without a file of its own, from the rows of the events."""

    file: str | None = None
    item_id: TextField
    title: TextField | None = None
    category: TextField | None = None
    brand: TextField | None = None
    price: NumberField | None = None
    available: TextField | None = None
    created_at: TimeField | None = None
    valid_from: TimeField | None = None  # None: the item's first event
    received_at: TimeField | None = None  # when the shop learnt it, in a file of its own; None: as it became valid
    attributes: dict[str, TextField] = Field(default={})


class UsersMap(Frozen):
    """Where the columns of `users` come from; without a file of its own, from the rows of the events."""

    file: str | None = None
    user_id: TextField
    signed_up_at: TimeField | None = None
    country: TextField | None = None
    age_band: TextField | None = None
    valid_from: TimeField | None = None  # None: the user's first event
    received_at: TimeField | None = None  # when the shop learnt it, in a file of its own; None: as it became valid
    attributes: dict[str, TextField] = Field(default={})


class Mapping(Frozen):
    """A whole mapping file."""

    files: dict[str, Annotated[FileSpec, BeforeValidator(lambda v: v if isinstance(v, dict | FileSpec) else {"path": v})]] = Field(
        default={}
    )
    events: EventsMap
    items: ItemsMap | None = None
    users: UsersMap | None = None
    settings: dict[str, dict[str, Any]] = Field(default={})

    @model_validator(mode="after")
    def _files_are_named(self) -> Self:
        parts: list[EventsMap | ItemsMap | UsersMap | None] = [self.events, self.items, self.users]
        wanted = {part.file for part in parts if part is not None} | {join.file for join in self.events.join}
        if unknown := sorted(name for name in wanted if name is not None and name not in self.files):
            raise ValueError(f"files: {unknown} not listed; `files` has {sorted(self.files)}")
        if self.events.file is None and len(self.files) > 1:
            raise ValueError(f"events: say which of the files {sorted(self.files)} holds the events, `file: ...`")
        return self

    @model_validator(mode="after")
    def _times_have_clocks(self) -> Self:
        parts = {"items": self.items, "users": self.users}
        for part, entry in parts.items():
            for key in ("valid_from", "received_at", "created_at", "signed_up_at"):
                when = getattr(entry, key, None)
                if when is not None and when.sequence is not None:
                    raise ValueError(f"{part}.{key}: a sequence can stand for events.event_at alone")
        return self

    @model_validator(mode="after")
    def _settings_fit(self) -> Self:
        if "sources" in self.settings:
            raise ValueError("settings.sources: limits on input are set in reloop.toml, not by what is read")
        try:
            Settings.model_validate(self.settings)
        except ValidationError as error:
            raise ValueError(f"{misfit.said(error, Settings, 'settings.')} (sections and knobs are in pipelines/config.py)") from error
        return self


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: `on`, `yes` and `2024-01-01` are words (YAML 1.1 makes them booleans and dates)."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in {"tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp"}]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), ["t", "f"])


def load(path: Path) -> Mapping:
    """Read a mapping file.

    Raises:
        MappingError: too large, no YAML, or a key or value that is not known; every one is named.
    """
    if not path.is_file():
        raise MappingError(str(path), found="no such file", allowed="a mapping in YAML", hint="docs/your-own-data.md shows one")
    if path.stat().st_size > LARGEST:
        raise MappingError(str(path), found=f"{path.stat().st_size:,} bytes", allowed=f"at most {LARGEST:,}")
    try:
        text = path.read_text(encoding="utf-8")
        # PyYAML takes quadratic time over brackets that only open.
        if any(depth > DEEPEST for depth in accumulate(BRACKETS.get(mark, 0) for mark in text)):
            raise MappingError(str(path), found=f"brackets nested deeper than {DEEPEST}", allowed="no YAML of a mapping nests like that")
        # A few nested aliases unfold to billions of nodes, and no mapping needs one.
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, Loader=yaml.SafeLoader)):
            raise MappingError(str(path), found="a YAML alias (*name)", allowed="plain YAML")
        content = yaml.load(text, Loader=_Loader)  # noqa: S506  a SafeLoader with fewer implicit types
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise MappingError(
            str(path), found=f"no YAML: {error}", allowed="a mapping in YAML", hint="docs/your-own-data.md shows one"
        ) from error
    return parse(content, str(path))


def parse(content: Any, name: str) -> Mapping:
    """Return the mapping that a document says; `name` is what an error calls it."""
    try:
        return Mapping.model_validate(content)
    except ValidationError as error:
        raise MappingError(
            name,
            found=misfit.said(error, Mapping),
            allowed="the keys of docs/your-own-data.md",
        ) from error
