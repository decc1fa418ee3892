"""`reloop explain`: why an item stands where it stands in somebody's list."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from pipelines.cli.answers import out
from pipelines.cli.options import AsOfOption, HomeOption, JsonOption, home_at
from pipelines.config import Home
from pipelines.errors import StateError
from pipelines.window import utc

N_FEATURES = 15


def explain(
    user: Annotated[str, typer.Option("--user", help="Whose list.")],
    as_of: AsOfOption,
    item: Annotated[str | None, typer.Option("--item", help="The item asked about; default: the first of the list.")] = None,
    k: Annotated[int, typer.Option("--k", min=1, help="Length of the list.")] = 10,
    release: Annotated[str | None, typer.Option("--release", help="A version that was released; default: the champion.")] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Show a user's list, and why an item stands where it stands: sources, features, scores, rules, and what would move it."""
    from pipelines.ranking import explain as explaining
    from pipelines.registry import bundle

    state = home_at(home)
    version, digest = _released(state, release)
    found = explaining.explain(state, bundle.load(state, digest), user, utc(as_of), item_id=item, k=k) | {
        "version": version,
        "bundle": digest,
    }
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    _tell_list(found)
    if found["item"] is None:
        out.print("  nothing is shown to this user", highlight=False)
    else:
        _tell_item(found["item"], found["serves"])


def _released(home: Home, release: str | None) -> tuple[int, str]:
    """Return version and digest of the champion, or of a version that was released.

    Raises:
        StateError: there is no such release.
    """
    from pipelines.registry import releases

    champion = releases.champion(home)
    if release is None and champion is not None:
        return champion.version, champion.digest
    known = {str(entry["version"]): entry["digest"] for entry in releases.history(home) if entry.get("version") and entry.get("digest")}
    if release is None or release not in known:
        found = "no champion yet" if release is None else f"version {release}, which was never released"
        raise StateError("release", found=found, allowed=f"one of the versions {sorted(known)}", hint="reloop releases shows them")
    return int(release), known[release]


def _tell_list(found: dict[str, Any]) -> None:
    history = found["history"]
    newest = "; ".join(f"{_named(event['item'], event['title'])}, {event['days_ago']:g} d ago" for event in history["newest"][:5])
    title = f"{escape(found['user'])} as of {found['as_of'][:10]}, version {found['version']}, order: {found['serves']}"
    grid = _grid(title, "", "item", "score", "proposed by", "lifted by")
    for line in found["list"]:
        grid.add_row(
            str(line["place"]),
            escape(_named(line["item"], line["title"])),
            f"{line['score']:.4f}",
            ", ".join(line["sources"]),
            ", ".join(line["rules"]) or "-",
        )
    out.print(grid)
    if not history["events"]:
        out.print("  nobody of that name has done anything yet: this is what a newcomer is shown", highlight=False)
    out.print(f"  history: {history['events']} events" + (f"; newest {escape(newest)}" if newest else ""), highlight=False)
    if found["exploration"]:
        out.print("  beyond this, some places are drawn for among new items (exploration)", highlight=False)


def _tell_item(item: dict[str, Any], serves: str) -> None:
    place = "not in the list" if item["place"] is None else f"place {item['place']}"
    out.print(f"\n{escape(_named(item['item_id'], item['title']))}: {place}", highlight=False)
    grid = _grid("Who proposed it", "source", "place", "score")
    for name, told in item["sources"].items():
        rank = "-" if told["place"] is None else str(told["place"])
        grid.add_row(name, rank if told["proposed"] else f"{rank} (beyond its list)", _number(told["score"]))
    for step in ("blend", "ranker") if serves == "ranked" else ("blend",):
        if item[step] is not None:
            grid.add_row(step, f"{item[step]['place']} of {item[step]['of']}", _number(item[step]["score"]))
    out.print(grid)
    if not item["candidate"]:
        out.print("  no source proposed it, so it was not ranked", highlight=False)
        return
    if len(item["rules"]) > 1:
        steps = " -> ".join(f"{name} {rank if rank is not None else 'out'}" for name, rank in item["rules"].items())
        out.print(f"  place after each rule: {steps}", highlight=False)
    if item["features"]:
        grid = _grid(f"What made its score, the {N_FEATURES} largest", "feature", "value", "unit", "adds")
        for told in item["features"][:N_FEATURES]:
            grid.add_row(told["feature"], _number(told["value"]), told["unit"], _number(told["added"], sign="+"))
        out.print(grid)
    for change in item["counterfactuals"]:
        would = "not in the list" if change["place"] is None else f"place {change['place']}"
        out.print(f"  without {change['without']}: {would}", highlight=False)


def _named(item: str, title: str | None) -> str:
    return item if title is None else f"{item} ({title})"


def _number(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.4g}"


def _grid(title: str, *headings: str) -> Table:
    grid = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for heading in headings:
        grid.add_column(heading, justify="right" if heading in {"", "place", "score", "value", "adds"} else "left")
    return grid
