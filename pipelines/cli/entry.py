"""The command line itself: its verbs in the order of their help, and what becomes of an error."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from pipelines.cli import (
    batching,
    bench,
    blocking,
    bundles,
    experimenting,
    explaining,
    generating,
    operations,
    ranking,
    releasing,
    replaying,
    reporting,
    retrieval,
    rolling,
    serving,
    shown,
    stages,
)
from pipelines.errors import ReloopError

app = typer.Typer(
    help="Keep a recommender system trained, fresh and honest.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

for verb in (
    stages.run,
    stages.ingest,
    stages.validate,
    stages.features,
    stages.train,
    stages.evaluate,
    stages.promote,
    stages.monitor,
    shown.impressions,
    shown.skew,
    replaying.replay,
    reporting.report,
    explaining.explain,
    operations.stream,
    operations.simulate,
    releasing.rollback,
    bundles.lineage,
    bundles.gc,
    serving.serve,
    batching.batch,
    blocking.block,
    blocking.unblock,
    blocking.blocked,
    operations.status,
    operations.doctor,
):
    app.command()(verb)
retrieval.app.command()(generating.generate)
app.add_typer(releasing.releases, name="releases")
app.add_typer(releasing.review, name="review")
app.add_typer(rolling.rollout, name="rollout")
app.add_typer(bundles.bundle, name="bundle")
app.add_typer(retrieval.app, name="retrieval")
app.add_typer(ranking.app, name="ranking")
app.add_typer(experimenting.app, name="experiment")
app.add_typer(serving.key, name="key")
app.add_typer(bench.app, name="bench")


@contextmanager
def _stoppable() -> Iterator[None]:
    """Leave with 128 + the number of a signal to stop, and one line that says so, wherever it met us."""
    received: list[int] = []

    def stop(number: int, _: object) -> NoReturn:
        received.append(number)
        # A terminated run takes its Airflow process along: the exit unwinds the stack that started it.
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        try:
            yield
        except Exception:
            if received:  # DuckDB, told to stop in a query, drops our exit and raises an error of its own
                sys.exit(128 + received[0])
            raise
    except SystemExit as left:
        if received and left.code == 128 + received[0]:
            name = signal.Signals(received[0]).name
            said = f"[bold]interrupted[/] by {name}: what was published is whole, and the same command goes on from there"
            Console(stderr=True, soft_wrap=True).print(said)
        raise


def main() -> None:
    """Run the command line; turn an error that a person can act on into one line and exit code 2."""
    try:
        with _stoppable():
            app()
    except ReloopError as error:
        _complain(str(error))
    except ValidationError as error:
        for wrong in error.errors():
            _complain(
                f"{'.'.join(map(str, wrong['loc']))}: {wrong['input']!r}; {wrong['msg']}. Hint: `reloop COMMAND --help` lists what is allowed"
            )
    except OSError as error:
        _complain(f"{error.filename or 'the system'}: {error.strerror or error}")
    except Exception as error:  # noqa: BLE001 - the outermost edge
        # Exit code 1 says that a decision was no, so a defect must not leave with Python's own 1.
        Console(stderr=True).print_exception()
        _complain(f"{type(error).__name__}: {error}. Hint: this is a defect of Reloop; the trace above says where")


def _complain(text: str) -> NoReturn:
    Console(stderr=True, soft_wrap=True).print(f"[bold red]error[/] {escape(text)}")
    sys.exit(2)
