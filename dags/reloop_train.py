"""Train a challenger, if a training is due.

**Does**: decides whether a training is due (cadence, volume, what the monitor or a person asks, cool-down, budget, faults of the
data); if so fits every retrieval source, blends their candidates, joins features point-in-time, searches knobs if that is
asked for, trains the ranker, judges it on the last window and bundles the whole. Due for a new catalogue alone, it keeps
the champion's ranker. Not due: `due` is skipped, its log says why, and so is everything after it.

**Writes**: `training/<as_of>/`, `bundles/`, one MLflow model version with the alias `challenger`. Asset `challenger`.

**When it fails**
- *due* says "not enough data": ingest more history; nothing is broken. "data fault": nothing is trained on broken data; mend it
  and ingest again, or accept it by name (`triage.accept` in `reloop.toml`); `reports/alerts/` holds what a person should see.
- *retrieve[source]*: only that source failed; the others keep their result. Clear it, or take the source out of the
  settings (`reloop.toml`).
- *blend*: a source is missing, or was fitted before the lake changed; clear `retrieve` for it. Its log ends with what each
  source adds and costs (`reloop retrieval sources`); `reloop retrieval prune` says which could go.
- *training_set*: features of a training day are missing; run `reloop_features` (or `reloop_backfill`) for them.
- *search*: clear it, and it goes on where it was; or set `search.n_trials = 0` (`reloop.toml`): no knob needs it.
- *rank*, *evaluate*, *bundle*: the champion still serves. Clear the task.

**Rerun** is safe at any point: the same `as_of` gives the same bundle.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import AssetAny, Metadata, Param, chain, dag, get_current_context, task
from reloop_assets import challenger, features, retrain_request
from reloop_defaults import DEFAULTS, REASON_LENGTH, START, TRAINING, as_of_param, current_as_of, proceed

REASON = Param(
    None,
    type=["null", "string"],
    maxLength=REASON_LENGTH,
    title="Reason",
    description_md="Why to train although no cadence asks for it; goes into the records. Empty: train only if it is due.",
)
SEARCH_TRIALS = Param(
    None,
    type=["null", "integer"],
    minimum=0,
    maximum=10_000,
    title="Trials of the search",
    description_md="How many sets of knobs to try before the ranker is trained; 0: none. Empty: `search.n_trials` of the settings.",
)


@dag(
    schedule=AssetAny(features, retrain_request),
    start_date=START,
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS,
    params={"as_of": as_of_param(), "reason": REASON, "search_trials": SEARCH_TRIALS},
    tags=["reloop", "models"],
    doc_md=__doc__,
)
def reloop_train() -> None:  # noqa: PLR0915 - one task after the other
    @task
    def due() -> str:
        from pipelines.config import Home
        from pipelines.monitoring import triggers

        as_of = current_as_of()
        decision = triggers.decide(Home.from_environment(), as_of, get_current_context()["params"]["reason"])
        proceed(decision.due, decision.reasons)
        return as_of.isoformat()

    @task
    def sources() -> list[str]:
        from pipelines import config
        from pipelines.ranking import rankers
        from pipelines.ranking.rerank import goods
        from pipelines.registry import gate_incumbents
        from pipelines.retrieval import lineup

        settings = config.load(config.Home.from_environment())
        rankers.chosen(settings.ranking)
        gate_incumbents.check(settings.gate, settings.retrieval.sources)
        chosen = lineup.chosen(settings.retrieval)
        goods.vectored(settings.rerank, chosen)
        return list(chosen)

    @task(pool=TRAINING, map_index_template="{{ task.op_kwargs['source'] }}", execution_timeout=timedelta(hours=4))
    def retrieve(source: str, as_of: str) -> None:
        from pipelines.config import Home
        from pipelines.retrieval import fitting
        from pipelines.window import utc

        fitting.fit(Home.from_environment(), utc(as_of), source)

    @task(pool=TRAINING)
    def blend(as_of: str) -> None:
        from pipelines.config import Home
        from pipelines.retrieval import attribution
        from pipelines.retrieval import blend as blending
        from pipelines.window import utc

        blending.blend(Home.from_environment(), utc(as_of))
        print(attribution.text(Home.from_environment(), utc(as_of)))  # noqa: T201 - into the task's log

    @task(pool=TRAINING)
    def training_set(as_of: str) -> None:
        from pipelines.config import Home
        from pipelines.ranking import training_set as rows
        from pipelines.window import utc

        rows.build(Home.from_environment(), utc(as_of))

    @task(pool=TRAINING, execution_timeout=timedelta(hours=4))
    def search(as_of: str) -> None:
        from pipelines.config import Home
        from pipelines.monitoring import retraining
        from pipelines.window import utc

        retraining.try_knobs(Home.from_environment(), utc(as_of), get_current_context()["params"]["search_trials"])

    @task(pool=TRAINING, execution_timeout=timedelta(hours=4))
    def rank(as_of: str) -> None:
        from pipelines.config import Home
        from pipelines.monitoring import retraining
        from pipelines.window import utc

        retraining.rank(Home.from_environment(), utc(as_of))

    @task(pool=TRAINING)
    def evaluate(as_of: str) -> None:
        from pipelines.config import Home
        from pipelines.ranking import attribution, judging
        from pipelines.window import utc

        judging.evaluate(Home.from_environment(), utc(as_of))
        print(attribution.text(Home.from_environment(), utc(as_of)))  # noqa: T201 - into the task's log

    @task(outlets=[challenger])
    def bundle(as_of: str):  # noqa: ANN202 - a generator: Airflow reads its Metadata
        from pipelines.config import Home
        from pipelines.registry import bundle as bundling
        from pipelines.window import utc

        version = bundling.build(Home.from_environment(), utc(as_of))
        yield Metadata(challenger, {"as_of": as_of, "version": version})

    as_of = due()
    named = sources()
    fitted = retrieve.partial(as_of=as_of).expand(source=named)
    chain(as_of, named)
    chain(fitted, blend(as_of), training_set(as_of), search(as_of), rank(as_of), evaluate(as_of), bundle(as_of))


reloop_train()
