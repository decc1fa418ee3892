"""How much memory a stretch of work takes at its peak, as Linux counts it for the whole process."""

from __future__ import annotations

from pathlib import Path

ME = Path("/proc/self")
KILOBYTES = 1024 / 1e6  # what /proc calls kB, in MB


def begin() -> float | None:
    """Forget the process's peak so far; return the MB it holds now, None where the kernel does not let us."""
    try:
        (ME / "clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return None
    return _status("VmRSS")


def above(held: float | None) -> float | None:
    """Return the MB of the peak since `begin` above what was held then; threads and their work count, child processes do not."""
    peak = None if held is None else _status("VmHWM")
    return None if peak is None or held is None else round(max(peak - held, 0.0), 1)


def _status(name: str) -> float | None:
    for line in (ME / "status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * KILOBYTES
    return None
