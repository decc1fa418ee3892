"""Every source ranked on five data sets by `reloop bench retrieval`: NDCG@10 of each beside popularity's, on days none has seen.

The windows, the knobs tried and the costs are in reports/bench/retrieval-DATASET.{json,csv,svg}, a summary in
reports/bench/retrieval.json. Real data sets lie under RELOOP_REAL_DATA (../shared/data); one that is absent is named and left out.

    --document FILE   put the tables between the file's marks `<!-- board: DATASET -->` and `<!-- end -->`, the plots beside it
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
from pathlib import Path
from typing import Any

from rich.console import Console

from pipelines import publish
from pipelines.config import REPOSITORY, Home
from pipelines.errors import ReloopError
from pipelines.retrieval import lineup
from pipelines.retrieval.leaderboard import page, session
from pipelines.retrieval.leaderboard.board import BASELINE, Plan
from pipelines.retrieval.leaderboard.data_sets import DATA_SETS

BOARDS = ("online-retail", "retailrocket", "movielens-100k", "simulated-taste", "simulated-popularity")
TARGET = "95% interval of the paired difference to popularity above 0"


def rows(data_set: str, figures: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a line a source: its NDCG@10 beside popularity's."""
    lines = page.measured(figures)
    popular = next((line["ndcg_at_10"] for line in lines if line["source"] == BASELINE), None)
    return [
        {
            "case": f"{data_set}, {line['source']}",
            "ours": line["ndcg_at_10"],
            "peer": popular,
            "unit": "NDCG@10",
            "ratio": round(line["ndcg_at_10"] / popular, 3) if popular else None,
            "target": "" if line["source"] == BASELINE else TARGET,
            "met": line["source"] == BASELINE or (line["above_popular_lower"] or 0) > 0,
            "interval": [line["lower"], line["upper"]],
            "users": line["n_users"],
            "fit_seconds": line["fit_seconds"],
            "fit_cpu_seconds": line["fit_cpu_seconds"],
            "ms_per_user": line["ms_per_user"],
            "peak_mb": line["peak_mb"],
        }
        for line in lines
    ]


def document(file: Path, boards: dict[str, dict[str, Any]]) -> None:
    """Put tables and plots of boards into a document."""
    text = file.read_text(encoding="utf-8")
    for name, figures in boards.items():
        test = figures["test"]
        head = f"Test window {test['window']}: {test['users']:,} users, {test['positives']:,} positives; {figures['items']:,} items, "
        tuned = any(len(tried) > 1 for tried in figures["tried"].values())
        head += (
            f"{figures['events']:,} events before it. Knobs: {'chosen on ' + figures['validation']['window'] if tuned else 'the defaults'}."
        )
        parts = (f"{head}\n", page.markdown(figures), f"![{name}](leaderboard-{name}.svg)\n", page.blends_markdown(figures))
        table = f"<!-- board: {name} -->\n" + "\n".join(parts) + "<!-- end -->"
        text, found = re.subn(rf"<!-- board: {name} -->.*?<!-- end -->", lambda _, table=table: table, text, flags=re.DOTALL)
        if not found:
            raise SystemExit(f"{file}: no mark for {name}")
        publish.write_text(file.with_name(f"leaderboard-{name}.svg"), page.plot(figures))
    publish.write_text(file, text)


def main() -> None:
    """Print every board and write them and their summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", action="append", choices=BOARDS, help="only this one; may be repeated")
    parser.add_argument("--source", action="append", choices=list(lineup.SOURCES), help="only this one; may be repeated")
    parser.add_argument("--seconds", type=float, default=60.0, help="training budget of each neural source")
    parser.add_argument("--no-tune", action="store_true", help="take every knob as it is")
    parser.add_argument("--document", type=Path, help="see above")
    parser.add_argument("--again", action="store_true", help="read the boards of the last run instead of making them")
    arguments = parser.parse_args()
    home, console = Home.from_environment(), Console(width=140)
    folder = Path(os.environ.get("RELOOP_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
    plan = Plan(tuple(arguments.source or lineup.SOURCES), arguments.seconds, tune=not arguments.no_tune, validate=True, timeout=1800.0)
    boards: dict[str, dict[str, Any]] = {}
    notes = [f"neural sources had {arguments.seconds:g} s of training each"]
    for name in arguments.dataset or BOARDS:
        file = DATA_SETS[name].file
        if arguments.again:
            boards[name] = json.loads((home.reports / "bench" / f"retrieval-{name}.json").read_text(encoding="utf-8"))
        elif file and not (folder / file).exists():
            notes.append(f"{name} left out: no {folder / file}")
        else:
            try:
                path = folder / file if file else None
                boards[name] = session.run(
                    home,
                    name,
                    plan,
                    path=path,
                    as_of=None,
                    tell=lambda what, done, name=name: what and print(f"{name}: {done} {what}", flush=True),
                )
            except ReloopError as error:
                notes.append(f"{name} left out: {error}")
    for figures in boards.values():
        console.print(page.table(figures))
        for sentence in page.others(figures):
            console.print(f"  {sentence}", highlight=False, markup=False)
        for grid in page.choices(figures):
            console.print(grid)
        page.write(home.reports / "bench", figures)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}"
    summary = [row for name, figures in boards.items() for row in rows(name, figures)]
    publish.write_json(
        home.reports / "bench" / "retrieval.json", {"name": "retrieval", "machine": machine, "rows": summary, "notes": "; ".join(notes)}
    )
    print("; ".join(notes))
    if arguments.document:
        document(arguments.document, boards)


if __name__ == "__main__":
    main()
