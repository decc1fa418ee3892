"""The page of a model version in MLflow: a model card, tags to search by, plots and tables beside its run.

    tags of the version     digest, as_of, git_commit, serves, quality, data, signed, part.<part>, gate.*, airflow_run, airflow_url
    description             the model card (Markdown), at most `LONGEST` characters: MLflow's column holds no more
    run artifacts           version-<n>/card.md, ndcg_by_slice.svg, importance.svg, psi.svg, reliability.svg, attribution.json, lineage.json

Everything comes from the bundle, the ledger and the cycle's records, so it can be written again at any
time: when the version is registered, and once more when it was decided on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final

from pipelines import cycle, publish
from pipelines.config import Home
from pipelines.ranking import reliability_plot
from pipelines.registry import bundle_folder, lineage, runs, tracking, version_plots
from pipelines.registry.bundle_folder import FACTS_FILE, REFERENCE_FILE
from pipelines.registry.markdown import plain
from pipelines.window import utc

LONGEST: Final = 5000
MOST_REASONS: Final = 12
MOST_STEPS: Final = 12
LAST: Final = "psi.svg"


def folder(version: int) -> str:
    """Return where the artifacts of a version lie in its run."""
    return f"version-{version}"


def write(home: Home, version: int, digest: str, tags: Mapping[str, Any] | None = None) -> None:
    """Write the page of a version, or write it anew with what was decided since; safe to repeat.

    Args:
        tags: further ones, of whoever decided.

    Raises:
        StateError: the bundle is damaged.
    """
    said = bundle_folder.document(home, digest, FACTS_FILE)
    traced = lineage.of_bundle(home, digest) | {"version": version, "decisions": lineage.decisions(home, digest, version)}
    books = tracking.client(home)
    run_id = str(books.get_model_version(tracking.MODEL, str(version)).run_id)
    place = f"#/experiments/{books.get_run(run_id).info.experiment_id}/runs/{run_id}/artifacts/{folder(version)}"
    text = "\n".join(card(version, said, traced, place))
    runs.describe_version(home, version, _tags(home, said, traced) | dict(tags or {}), _cut(text))
    _artifacts(home, version, said, traced, text)


def _cut(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    return text[: LONGEST - 40].rpartition("\n")[0] + "\n\n_cut; the whole card is in the run_"


def _tags(home: Home, said: Mapping[str, Any], traced: Mapping[str, Any]) -> dict[str, str]:
    path = bundle_folder.folder(home, traced["digest"])
    found = {
        "quality": _interval(said["metrics"]),
        "data": _data(traced["data"]),
        "environment": str(traced["environment"]),
        "bytes": f"{bundle_folder.size(path):,}",
        "libraries": " ".join(f"{name}=={one}" for name, one in sorted(traced["libraries"].items())),
    }
    return found | {f"part.{name.replace('/', '.')}": one[:12] for name, one in said.get("parts", {}).items()}


def _interval(found: Mapping[str, Any]) -> str:
    """Return a mean with its interval and the users it is about; "unmeasured" where there was nobody."""
    if found.get("ndcg_at_10") is None:
        return "unmeasured (0 users)"
    return f"{found['ndcg_at_10']:.4f} [{found['lower']:.4f}, {found['upper']:.4f}], {found['n_users']:,} users"


def _data(data: Mapping[str, Any]) -> str:
    days = sorted(name.split("event_date=")[1].split("/")[0] for name in data["partitions"] if "event_date=" in name)
    return f"{len(days)} days, {days[0]} to {days[-1]}, {data['digest'][:12]}" if days else f"landing {data['lake']}"


def card(version: int, said: Mapping[str, Any], traced: Mapping[str, Any], place: str) -> Iterator[str]:
    """Yield the lines of the model card; pure.

    Args:
        place: of the version's artifacts, as MLflow's pages address them.
    """
    measured = said["metrics"]
    yield f"## reloop {version}: as of {str(said['as_of'])[:10]}, serves the {said['serves']} list\n"
    yield from _decided(traced["decisions"])
    yield f"**NDCG@10** {_interval(measured)}, on the judged window {str(said['cutoff'])[:10]} to {str(said['as_of'])[:10]}.\n"
    yield from (f"- {plain(reason)}" for reason in measured.get("reasons", [])[:MOST_REASONS])
    plots = {"by slice": "ndcg_by_slice", "importance": "importance", "PSI": "psi"} | (
        {"reliability": "reliability"} if measured.get("calibration") else {}
    )
    yield "\n**Plots**: " + " · ".join(f"[{name}]({place}/{file}.svg)" for name, file in plots.items()) + f" · [all files]({place})\n"
    yield "**Slices**\n\n| slice | NDCG@10 [95%], users |\n|---|---|"
    yield from (f"| {plain(name)} | {_interval(one)} |" for name, one in sorted(measured["slices"].items()))
    steps = [row for row in said.get("attribution", []) if row["metric"] == "ndcg_at_10"]
    if steps:
        yield "\n**What each step adds**\n\n| step | NDCG@10 | against | difference [95%] |\n|---|---|---|---|"
        yield from (_step(row) for row in steps[-MOST_STEPS:])
    yield "\n\n### Intended use and limits\n"
    yield "Top-k lists of items for one user of this shop, from the events up to the request. No parameter belongs to a user."
    yield "Judged offline on the week that followed the cutoff: what was never shown could not be clicked.\n"
    yield "### Where it comes from\n"
    yield f"- bundle `{traced['digest']}`"
    yield f"- code `{traced['git_commit']}`"
    yield f"- data {_data(traced['data'])}"
    run = traced["airflow"]
    if run:
        name = f"`{run.get('dag', '?')}` / `{run.get('run', '?')}`"
        yield f"- Airflow run [{name}]({run['url']})" if "url" in run else f"- Airflow run {name}"
    yield f"- signed in environment `{traced['environment']}`"
    yield f"- plots, tables and the whole lineage: artifacts of the run, folder `{folder(version)}`; `reloop lineage {version}`"


def _decided(decisions: list[dict[str, Any]]) -> Iterator[str]:
    if not decisions:
        yield "**Not decided on yet.**\n"
        return
    last = decisions[-1]
    by = f" by {plain(str(last['author']))}" if last.get("author") else ""
    yield f"**{last['kind']}**{by} (entry {last['seq']} of the ledger); champion before: {last.get('champion_before') or 'none'}.\n"
    yield from (f"- {plain(reason)}" for reason in last.get("reasons", [])[:MOST_REASONS])
    yield ""


def _step(row: Mapping[str, Any]) -> str:
    apart = "" if row["difference"] is None else f"{row['difference']:+.4f} [{row['lower']:+.4f}, {row['upper']:+.4f}]"
    value = "" if row["value"] is None else f"{row['value']:.4f}"
    return f"| {plain(row['step'])} | {value} | {plain(row['against'] or '')} | {apart} |"


def _artifacts(home: Home, version: int, said: Mapping[str, Any], traced: Mapping[str, Any], text: str) -> None:
    """Put card, plots and tables beside the run; the plots once, unless the cycle's drift check has come since."""
    books, where = tracking.client(home), folder(version)
    run_id = str(books.get_model_version(tracking.MODEL, str(version)).run_id)
    books.log_text(run_id, text + "\n", f"{where}/card.md")
    books.log_text(run_id, publish.to_json(traced), f"{where}/lineage.json")
    there = {entry.path for entry in books.list_artifacts(run_id, where)}
    drift = _drift(home, utc(said["as_of"]))
    if f"{where}/{LAST}" in there and not drift:
        return
    if said.get("attribution"):
        runs.log_table(home, run_id, f"{where}/attribution.json", said["attribution"])
    for name, plot in plots(version, said, bundle_folder.document(home, traced["digest"], REFERENCE_FILE), drift).items():
        books.log_text(run_id, plot, f"{where}/{name}")


def plots(version: int, said: Mapping[str, Any], reference: Mapping[str, Any], drift: Mapping[str, Any]) -> dict[str, str]:
    """Return the plots of a version by file name, in the order to write them: where the last one is, all are; pure.

    Args:
        reference: what the bundle remembers of its population, as JSON.
    """
    title = f"reloop {version}, {str(said['as_of'])[:10]}"
    measured = said["metrics"]
    usual = {name: {int(lag): value for lag, value in lags.items()} for name, lags in reference["movement"].items()}
    found = {
        "ndcg_by_slice.svg": version_plots.slices(measured, measured["slices"], title),
        "importance.svg": version_plots.importance(reference["importance"], title),
    }
    if measured.get("calibration"):
        found["reliability.svg"] = reliability_plot.svg(measured["calibration"], title)
    return found | {LAST: version_plots.movement(usual, title, drift)}


def _drift(home: Home, as_of: datetime) -> dict[str, Any]:
    return {name: one for record in cycle.records(home, as_of, "drift") for name, one in record.get("features", {}).items()}
