"""Running suites in Great Expectations and rendering its Data Docs: the only module that holds a GX context.

Pages are files under `reports/gx/`, the last `KEPT` results of every suite. What GX would fetch
from the network when a page is opened is taken out, and a small stylesheet put in.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import pandas as pd

os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read at import, once
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # GX 1.24 imports sre_constants; drop this once it no longer does
    import great_expectations as gx
    from great_expectations import expectations as gxe
    from great_expectations.core.expectation_validation_result import ExpectationSuiteValidationResult
    from great_expectations.data_context.types.base import DataContextConfig, InMemoryStoreBackendDefaults, ProgressBarsConfig
    from great_expectations.data_context.types.resource_identifiers import ExpectationSuiteIdentifier, ValidationResultIdentifier

from pipelines import publish
from pipelines.window import utc

__all__ = ["Failure", "Verdict", "evaluate", "gx", "gxe"]

KEPT: Final = 60
SEVERITIES: Final = ("critical", "warning", "info")
RESULTS: Final = ".results"
SUITES: Final = ".suites"
STYLE: Final = """<style>
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#222;background:#fff}
table{border-collapse:collapse;width:100%}td,th{border:1px solid #ddd;padding:.4rem .6rem;text-align:left;vertical-align:top}
.d-none,.modal,.navbar-toggler,nav form{display:none}.collapse{display:block}h1,h2,h3,h4{line-height:1.2}ul{padding-left:1.2rem}
.text-success{color:#17733b}.text-danger{color:#b3261e}.text-warning{color:#8a5a00}
</style>"""
_REMOTE: Final = re.compile(
    r"<script[^>]*\ssrc=\"https?://[^>]*>\s*</script>|<link[^>]*\shref=\"https?://[^>]*>|<img[^>]*\ssrc=\"https?://[^>]*>"
    r"|<a[^>]*\shref=\"https?://[^>]*>|url\(['\"]?https?://[^)]*\)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Failure:
    """One expectation that did not hold: how bad, and the sentence about its worst line."""

    severity: str
    check: str
    message: str


@dataclass(frozen=True)
class Verdict:
    """What the suites said.

    Attributes:
        failures: worst first; within a severity in the order of the suites.
        evaluated: how many expectations were.
        page: the Data Docs page of the first suite.
    """

    failures: list[Failure]
    evaluated: int
    page: Path

    def of(self, severity: str) -> list[str]:
        """Return the messages of one severity."""
        return [failure.message for failure in self.failures if failure.severity == severity]


def evaluate(
    folder: Path,
    run: str,
    as_of: datetime,
    held: Sequence[tuple[gx.ExpectationSuite, pd.DataFrame]],
    facts: Mapping[str, Any] | None = None,
) -> Verdict:
    """Hold each suite against its measurements, keep the results, and render their pages.

    Args:
        folder: where Data Docs live.
        run: what the page is called: a batch id, or a mart and day. The same run replaces its page.
        facts: further words for the sentences of the failures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        context = _context(folder)
        run_id = gx.RunIdentifier(run_name=run, run_time=utc(as_of))
        source = context.data_sources.add_pandas("measurements")
        failures: list[Failure] = []
        identifiers: list[ExpectationSuiteIdentifier | ValidationResultIdentifier] = []
        evaluated = 0
        for suite, lines in held:
            added = context.suites.add_or_update(suite)
            batch = source.add_dataframe_asset(suite.name).add_batch_definition_whole_dataframe("lines")
            definition = context.validation_definitions.add(gx.ValidationDefinition(name=f"{suite.name} of {run}", data=batch, suite=added))
            result = definition.run(
                batch_parameters={"dataframe": lines},
                run_id=run_id,
                result_format={"result_format": "SUMMARY", "unexpected_index_column_names": ["day", "subject"]},
            )
            evaluated += len(result.results)
            failures += _failures(result, lines, facts or {})
            suite_id = ExpectationSuiteIdentifier(name=suite.name)
            identifiers += [suite_id, ValidationResultIdentifier(suite_id, run_id, result.batch_id)]
        _forget(folder)
        context.build_data_docs(resource_identifiers=identifiers)
        page = _part_with_the_network(folder, run, held[0][0].name)
    failures.sort(key=lambda failure: SEVERITIES.index(failure.severity))
    return Verdict(failures, evaluated, page)


def _context(folder: Path) -> gx.data_context.EphemeralDataContext:
    """Return a context that lives as long as the call, but for the results and suites it keeps in files.

    The index drops the page of a suite that the context does not hold, and links it all the same.
    """
    stores = InMemoryStoreBackendDefaults()
    for name, kept in ((stores.validation_results_store_name, RESULTS), (stores.expectations_store_name, SUITES)):
        stores.stores[name]["store_backend"] = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder / kept)}
    context = gx.get_context(
        mode="ephemeral",
        project_config=DataContextConfig(
            store_backend_defaults=stores, analytics_enabled=False, progress_bars=ProgressBarsConfig(globally=False)
        ),
    )
    context.add_data_docs_site(
        "reloop",
        {
            "class_name": "SiteBuilder",
            "show_how_to_buttons": False,
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder)},
        },
    )
    return context


def _failures(result: ExpectationSuiteValidationResult, lines: pd.DataFrame, facts: Mapping[str, Any]) -> Iterator[Failure]:
    for outcome in result.results:
        if outcome.success:
            continue
        config = outcome.expectation_config
        severity = str(getattr(config.severity, "value", config.severity))
        if outcome.exception_info and outcome.exception_info.get("raised_exception"):
            # What could not be evaluated did not hold.
            yield Failure(
                "critical", str(config.meta["check"]), f"{config.type} on {config.kwargs}: {outcome.exception_info['exception_message']}"
            )
            continue
        yield Failure(severity, str(config.meta["check"]), _sentence(config.meta, config.kwargs, lines, facts))


def _sentence(meta: Mapping[str, Any], kwargs: Mapping[str, Any], lines: pd.DataFrame, facts: Mapping[str, Any]) -> str:
    """Return the sentence about the line that is furthest off, and how many more there are."""
    column = kwargs["column"]
    if "value_set" in kwargs:
        off = lines[lines[column].isin(kwargs["value_set"])]
    elif kwargs.get("max_value") is not None:
        off = lines[lines[column] > kwargs["max_value"]].sort_values(column, ascending=False, kind="stable")
    else:
        off = lines[lines[column] < kwargs["min_value"]].sort_values(column, kind="stable")
    worst = {str(name): value for name, value in off.iloc[0].items()}
    rows, count = int(worst["rows"]), int(worst["count"])
    words = {**worst, **facts, "rows": f"{rows:,}", "count": f"{count:,}", "share": count / rows if rows else 0.0}
    said = str(meta["says"]).format_map({**words, "value": worst[column], "limit": meta.get("limit", 0)})
    said = said.replace(" on all", " of the batch")
    return said if len(off) == 1 else f"{said} (and {len(off) - 1} more like it)"


def _forget(folder: Path) -> None:
    """Keep the last `KEPT` results of each suite, by the moment they are about; drop older ones and their pages."""
    for suite in (folder / RESULTS).glob("*"):
        runs = sorted(suite.glob("*/*"), key=lambda run: (run.name, run.parent.name))
        for run in runs[:-KEPT]:
            shutil.rmtree(folder / "validations" / run.relative_to(folder / RESULTS), ignore_errors=True)
            shutil.rmtree(run, ignore_errors=True)
    for empty in [*(folder / RESULTS).glob("*/*"), *(folder / "validations").glob("*/*")]:
        if empty.is_dir() and not any(empty.iterdir()):
            empty.rmdir()


def _part_with_the_network(folder: Path, run: str, suite: str) -> Path:
    """Take what lies on other hosts out of the pages just written; return the page of one suite's result."""
    pages = [folder / "index.html", *(folder / "expectations").glob("*.html"), *(folder / "validations").glob(f"*/{run}/*/*.html")]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        local = _REMOTE.sub("", text)
        if STYLE not in local:
            local = local.replace("</head>", STYLE + "</head>", 1)
        if local != text:
            publish.write_text(page, local)
    return next((page for page in pages if page.parts[-4:-2] == (suite, run)), pages[0])


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One renderer at a time: the index is written from what all of them kept."""
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
