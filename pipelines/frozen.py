"""What every section of the settings is: immutable, and strict about what it is given."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A settings class: immutable, and a misspelt knob is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Policy(Frozen):
    """Settings that decide something: a number that is none is an error, too."""

    model_config = ConfigDict(allow_inf_nan=False)
