"""Text that may come from data, on pages that are Markdown."""

from __future__ import annotations

import re
from typing import Final

# An underscore within a word is none of markup, and names are full of them.
MARKUP: Final = re.compile(r"[\\`*{}\[\]<>#|!~]|(?<![^\W_])_|_(?![^\W_])")


def plain(text: str) -> str:
    """Return text that no Markdown renderer takes for markup or a link."""
    return MARKUP.sub(r"\\\g<0>", re.sub(r"[\r\n]", " ", text))
