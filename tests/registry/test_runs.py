"""What a cycle leaves in MLflow: findable runs, the whole configuration, finite figures, once."""

from __future__ import annotations

import json

import pytest
from trained_shop import SECOND

from pipelines import config, cycle
from pipelines.config import Home
from pipelines.registry import promotion, runs, tracking


def found(home: Home, experiment: str) -> dict[str, object]:
    books = tracking.client(home)
    where = books.get_experiment_by_name(experiment).experiment_id
    listed = books.search_runs([where], f"tags.cycle = '{SECOND.isoformat()}'")
    assert len({run.info.run_name for run in listed}) == len(listed)
    return {run.info.run_name: run for run in listed}


def test_a_cycle_is_a_run_a_part_and_logging_it_again_changes_nothing(fresh: Home) -> None:
    promotion.decide(fresh, SECOND)
    runs.log_cycle(fresh, SECOND)
    settings = config.load(fresh)
    retrieval, ranking, release = (found(fresh, name) for name in (runs.RETRIEVAL, runs.RANKING, runs.RELEASE))
    day = f"{SECOND:%Y-%m-%d}"
    assert set(retrieval) == {f"{source}-{day}" for source in (*settings.retrieval.sources, "blend")}
    assert set(ranking) == {f"lambdarank-{day}"}
    assert set(release) == {f"release-{day}"}

    ranked = ranking[f"lambdarank-{day}"]
    assert ranked.data.metrics["ndcg_at_10"] == cycle.records(fresh, SECOND, "ranking")[0]["ndcg_at_10"]
    assert ranked.data.params["gate.min_effect"] == str(settings.gate.min_effect)
    assert {one.dataset.name for one in ranked.inputs.dataset_inputs} == {"universe", "training_set"}
    gate = cycle.records(fresh, SECOND, "gate")[0]
    assert release[f"release-{day}"].data.tags["gate.reasons"] == "\n".join(gate["reasons"])

    blended = retrieval[f"blend-{day}"]
    worth = cycle.records(fresh, SECOND, "attribution")[0]["sources"]
    assert blended.data.metrics["contribution.item_knn"] == worth["item_knn"]["contribution"]
    assert retrieval[f"item_knn-{day}"].data.metrics["share_of_hits_alone"] == worth["item_knn"]["share_of_hits_alone"]

    runs.log_cycle(fresh, SECOND)
    table = tracking.client(fresh).load_table(blended.info.experiment_id, "sources.json", run_ids=[blended.info.run_id])
    assert dict(zip(table["source"], table["contribution"], strict=True)) == pytest.approx(
        {source: row["contribution"] for source, row in worth.items()}
    )
    again = found(fresh, runs.RANKING)[f"lambdarank-{day}"]
    assert again.info.run_id == ranked.info.run_id
    assert again.data.metrics == ranked.data.metrics
    history = tracking.client(fresh).get_metric_history(again.info.run_id, "ndcg_at_10")
    assert len(history) == 1
    assert len(again.inputs.dataset_inputs) == 2
    tables = [entry["path"] for entry in json.loads(again.data.tags[runs.TABLES])]
    assert tables == ["importance.json", "attribution.json"]


def test_only_finite_numbers_become_metrics_under_names_mlflow_takes() -> None:
    record = {"ndcg@10": 0.5, "nan": float("nan"), "none": None, "flag": True, "text": "x", "deep": {"recall@50 (new)": 1}}
    assert runs.metrics(record) == {"ndcg_at_10": 0.5, "deep.recall_at_50 _new_": 1.0}
