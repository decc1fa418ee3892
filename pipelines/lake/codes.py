"""Event types and devices as small numbers, in SQL over the lake's events and beside it."""

from __future__ import annotations

from typing import Final

from pipelines import columns as c

DEVICES: Final = ("desktop", "phone", "tablet")  # what a device is taken for; any that is neither of the last two is the first
PHONES: Final = ("mobile", "phone", "smartphone", "app", "android", "ios")
DEVICE_CODES: Final = f"""CASE WHEN device IS NULL THEN -1 WHEN lower(device) = 'tablet' THEN 2
    WHEN lower(device) IN {PHONES} THEN 1 ELSE 0 END"""  # as int_user_days has it
TYPE_CODES: Final = " ".join(f"WHEN '{name}' THEN {code}" for code, name in enumerate(c.EVENT_TYPES))


def device_code(device: str | None) -> int:
    """Return the position of a device in `DEVICES`, as `DEVICE_CODES` has it; -1 where it is not told."""
    if device is None:
        return -1
    kind = device.lower()
    return 2 if kind == "tablet" else 1 if kind in PHONES else 0
