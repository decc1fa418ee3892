"""What each policy of retraining and release would have had: a year of Online Retail, decided anew every week.

    make bench-replay                       the file below RELOOP_REAL_DATA, else ../shared/data; hours on one core, and it goes on where it stopped
    make bench-replay ARGS='--to 2011-04-01'
    make bench-replay ARGS='--home var/replay --figures'   the figures of a replay that was made, without making more of it

The peer of every row is the gate: what it would have had in the same weeks, paired by user and week.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from one_run import machine, write_page

from pipelines.config import REPOSITORY, Home
from pipelines.replay import page, policies

DATA = Path(os.environ.get("RELOOP_REAL_DATA", REPOSITORY.parent / "shared" / "data")) / "online-retail" / "online-retail-dataset.csv.gz"


def rows(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a line a policy, best first."""
    of_gate = next(one for one in figures["policies"] if one["policy"] == policies.GATE)
    found = []
    for one in figures["policies"]:
        name, ours, theirs = one["policy"], one["ndcg_at_10"]["value"], of_gate["ndcg_at_10"]["value"]
        versus = one["difference"]
        span = "" if name == policies.GATE else f", difference {versus['value']:+.4f} [{versus['lower']:+.4f}, {versus['upper']:+.4f}]"
        found.append(
            {
                "case": f"{name}: {one['trainings']} trainings, {one['promotions']} promotions{span}",
                "ours": round(ours, 4),
                "peer": round(theirs, 4),
                "unit": "NDCG@10",
                "ratio": round(ours / theirs, 3),
                "target": "",
                "met": True,
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path("var/replay"))
    parser.add_argument("--to", help="day after the last")
    parser.add_argument("--max-age-days", default="84", help="of a model in a week it is measured in; the first model is in all")
    parser.add_argument("--figures", action="store_true", help="make nothing, tell what is there")
    arguments = parser.parse_args()
    home = Home(arguments.home.resolve())
    if not arguments.figures:
        if not DATA.is_file():
            sys.exit(f"no {DATA}: set RELOOP_REAL_DATA to the folder that holds online-retail/")
        command = [
            sys.executable,
            "-m",
            "pipelines.cli",
            "replay",
            "--source",
            "online-retail",
            "--path",
            str(DATA),
            "--home",
            str(home.root),
        ]
        command += ["--max-age-days", arguments.max_age_days, *(["--to", arguments.to] if arguments.to else [])]
        subprocess.run(command, check=True, env={**os.environ, "RELOOP_HOME": str(home.root)})
    figures = json.loads(page.json_file(home).read_text(encoding="utf-8"))
    weeks = figures["policies"][0]["weeks"]
    notes = f"Online Retail, {len(weeks)} weeks from {weeks[0]['start'][:10]} to {weeks[-1]['end'][:10]}, {figures['policies'][0]['ndcg_at_10']['n']} users; intervals over users, each with all weeks."
    found = rows(figures)
    print(f"replay, on {machine()}\n{notes}")
    for one in found:
        print(f"  {one['ours']:.4f}  {one['ratio']:.3f} of the gate's  {one['case']}")
    write_page("replay", found, notes)


if __name__ == "__main__":
    main()
