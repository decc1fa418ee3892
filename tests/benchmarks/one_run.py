"""One measured run in a process of its own, so that its peak memory is its own; and the page the runs end on."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines import publish
from pipelines.config import Home


def measured(action: Callable[[], Any]) -> dict[str, float]:
    """Return wall and CPU seconds of an action, and the peak memory of this process in MB."""
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return {
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def in_process(script: str, *arguments: str) -> dict[str, float]:
    """Run a step of a benchmark script in a fresh process and return what it measured."""
    root = Path(script).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, script, *arguments], env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def row(case: str, ours: float, peer: float, unit: str, target: str, *, met: bool) -> dict[str, Any]:
    """Return one line of figures; the ratio is peer over ours, so above 1 is better than the peer."""
    return {
        "case": case,
        "ours": round(ours, 2),
        "peer": round(peer, 2),
        "unit": unit,
        "ratio": round(peer / ours, 3) if ours else None,
        "target": target,
        "met": met,
    }


def compare(size: int, ours: dict[str, float], peer: dict[str, float], *, min_ratio: float, max_mb: float) -> list[dict[str, Any]]:
    """Return the figures of one size: time, rate and memory of ours and of the peer."""
    label = f"{size // 1_000_000}M rows"
    slower, heavy = f"ratio >= {min_ratio:g}", f"<= {max_mb:g} MB"
    rows = [
        row(f"{label}, wall", ours["seconds"], peer["seconds"], "s", slower, met=peer["seconds"] / ours["seconds"] >= min_ratio),
        row(
            f"{label}, CPU",
            ours["cpu_seconds"],
            peer["cpu_seconds"],
            "s",
            slower,
            met=peer["cpu_seconds"] / ours["cpu_seconds"] >= min_ratio,
        ),
        row(f"{label}, peak memory", ours["peak_mb"], peer["peak_mb"], "MB", heavy, met=ours["peak_mb"] <= max_mb),
    ]
    rate = {who: size / figures["seconds"] / 1000 for who, figures in (("ours", ours), ("peer", peer))}
    speed = row(f"{label}, rate", rate["ours"], rate["peer"], "thousand rows/s", "", met=True)
    return [*rows, {**speed, "ratio": round(rate["ours"] / rate["peer"], 3)}]


def publish_page(name: str, rows: list[dict[str, Any]], notes: str) -> None:
    """Print the figures for people and write them for machines."""
    write_page(name, rows, notes)
    print(f"{name}, on {machine()}\n{notes}")
    for line in rows:
        peer, ratio = ("-" if line[at] is None else f"{line[at]:,.2f}" for at in ("peer", "ratio"))  # a peer that does not fit
        print(f"  {line['case']:<26} ours {line['ours']:>10,.2f}  peer {peer:>10} {line['unit']:<16} ratio {ratio}  {line['target']}")


def write_page(name: str, rows: list[dict[str, Any]], notes: str) -> None:
    """Write the figures for machines."""
    page = {"name": name, "machine": machine(), "rows": rows, "notes": notes}
    publish.write_json(Home.from_environment().reports / "bench" / f"{name}.json", page)


def machine() -> str:
    """Return what the figures were measured on."""
    return f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}"
