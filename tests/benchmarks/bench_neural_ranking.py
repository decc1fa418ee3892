"""Do networks rank better than trees? Each against lambdarank, on training rows and a judged window that the loop has made.

    make bench-neural-ranking                       the newest run of the state folder (RELOOP_HOME, or var/)
    python tests/benchmarks/bench_neural_ranking.py --home FOLDER [--as-of DAY] [--ranker dcn] [--knobs '{"n_epochs": 5}']

All rankers get the same rows, features and candidates; each is fitted with the knobs of its line-up and the
settings, the networks stopped early on the newest training window, and NDCG@10 is of every user of the judged window, which
none of them saw. Differences are paired over users. CPU seconds are of this process, scoring is of one list of 500 at a time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from one_run import write_page

from pipelines import config
from pipelines.config import Home
from pipelines.datasets import universe
from pipelines.datasets.interactions import histories, positions
from pipelines.datasets.split import JUDGE
from pipelines.evaluation import metrics, paired
from pipelines.ranking import proposals, rankers, training_set
from pipelines.ranking.context import gather
from pipelines.ranking.features import assemble
from pipelines.ranking.protocol import Ranker
from pipelines.retrieval import blend, fitting, lineup, vectors
from pipelines.window import utc

PEER = "lambdarank"
NETWORKS = ("dcn", "wide_deep", "shared_bottom", "mmoe")
CANDIDATES, TIMES = 500, 21


class Window:
    """The judged window of a run: the features of all its candidates, and what the users did."""

    def __init__(self, home: Home, as_of: Any) -> None:
        settings, world = config.load(home), universe.load(home, as_of)
        fold, self.truth = world.fold(JUDGE), world.labels(JUDGE)
        users = histories(world.interactions(fold.cutoff, settings.training), self.truth.user_ids)
        self.proposed = proposals.of_table(blend.candidates(home, as_of, JUDGE), positions(self.truth.user_ids, world.user_ids))
        models = {name: lineup.load(fitting.folder(home, as_of, name)) for name in settings.retrieval.sources}
        placed = {name: vectors.of(model, users) for name, model in models.items()}
        context = gather(
            home,
            self.proposed,
            users,
            user_ids=self.truth.user_ids,
            item_ids=world.item_ids,
            as_of=fold.cutoff,
            groups=training_set.groups(home, as_of),
            memory=training_set.learnt(home, as_of),
            vectors={name: found for name, found in placed.items() if found},
        )
        self.features = np.concatenate([assemble(context, block)[0] for block in self.proposed.blocks()])

    def ndcg(self, ranker: Ranker) -> np.ndarray:
        """Return NDCG@10 of each user."""
        score = ranker.score(self.features, np.diff(self.proposed.starts()).astype(np.int32))
        item = self.proposed.ranked(score, self.truth.n_users, 10)[0]
        return metrics.ndcg(metrics.judge(item, self.truth.indptr, self.truth.item, self.truth.gain), 10)

    def milliseconds(self, ranker: Ranker) -> float:
        """Return the median time that one list takes."""
        some, taken = np.ascontiguousarray(np.resize(self.features, (CANDIDATES, self.features.shape[1]))), []
        for _ in range(TIMES):
            began = time.perf_counter()
            ranker.score(some, np.array([CANDIDATES], np.int32))
            taken.append(1000 * (time.perf_counter() - began))
        return statistics.median(taken)


def newest(home: Home) -> Any:
    """Return the newest run that has training rows."""
    return utc(max(path.parent.parent.name for path in home.training.glob("*/training_set/manifest.json"))[:10])


def figures(label: str, name: str, ours: dict[str, Any], peer: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the lines of one network beside the trees; a ratio above 1 is better than the trees."""
    against = paired.interval(ours["ndcg"] - peer["ndcg"], seed=7)
    said = f"difference {against.mean:+.4f} [{against.lower:+.4f}, {against.upper:+.4f}], {against.n} users"
    ndcg, of_trees = float(ours["ndcg"].mean()), float(peer["ndcg"].mean())
    best = {"case": f"{label} {name}, NDCG@10", "ours": ndcg, "peer": of_trees, "unit": "", "ratio": ndcg / of_trees, "target": said}
    lines = [best | {"met": against.lower > 0}]
    for what, unit in (("fit", "CPU s"), ("list of 500", "ms")):
        ratio = peer[what] / max(ours[what], 1e-9)
        lines.append(
            {
                "case": f"{label} {name}, {what}",
                "ours": ours[what],
                "peer": peer[what],
                "unit": unit,
                "ratio": ratio,
                "target": "",
                "met": True,
            }
        )
    return lines


def main() -> None:
    """Fit, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, action="append", help="a state folder in which the loop has run; may be repeated")
    parser.add_argument("--as-of", help="a training run of it; default: the newest")
    parser.add_argument("--ranker", action="append", choices=NETWORKS, help="only this one; may be repeated")
    parser.add_argument("--knobs", type=json.loads, default={}, help="of the networks, as JSON")
    options = parser.parse_args()
    lines: list[dict[str, Any]] = []
    for home in [Home(path.resolve()) for path in options.home] if options.home else [Home.from_environment()]:
        as_of = utc(options.as_of) if options.as_of else newest(home)
        settings, rows, window = config.load(home).ranking, training_set.load(home, as_of), Window(home, as_of)
        label = f"{home.root.name} {as_of:%Y-%m-%d}"
        print(
            f"{label}: {len(rows.gain):,} training rows in {len(rows.group):,} lists, {len(window.features):,} candidates judged",
            flush=True,
        )
        found: dict[str, dict[str, Any]] = {}
        for name in (PEER, *(options.ranker or NETWORKS)):
            ranker, began = rankers.chosen(settings, name), time.process_time()
            if name != PEER:
                ranker = rankers.make(name, {"seed": settings.seed, **settings.parameters.get(name, {}), **options.knobs})
            fitted = ranker.fit(rows)
            fit = time.process_time() - began
            found[name] = {"ndcg": window.ndcg(fitted), "fit": fit, "list of 500": window.milliseconds(fitted)}
            for line in figures(label, name, found[name], found[PEER]):
                print(
                    f"  {line['case']:<46} {line['ours']:>9.4f} trees {line['peer']:>9.4f} {line['unit']:<6} {line['target']}", flush=True
                )
                lines.append(line)
    write_page("neural-ranking", lines, notes="networks against lambdarank, same rows, features and candidates")


if __name__ == "__main__":
    main()
