"""`reloop serve` and the keys of those who may ask it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pipelines.cli.answers import answer, out
from pipelines.cli.options import HomeOption, JsonOption, home_at

key = typer.Typer(help="The API keys of the service.", no_args_is_help=True)

KeyOption = Annotated[str, typer.Argument(help="Id of the key, as `reloop key list` shows it.")]


def serve(
    host: Annotated[str, typer.Option("--host", help="Address to listen on; beyond loopback clients need a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8000,
    workers: Annotated[int, typer.Option("--workers", min=1, max=256, help="Processes that answer.")] = 1,
    now: Annotated[
        str, typer.Option("--now", help="What time it is: `wall`, `data` (the end of the lake), or a moment; it goes on with real seconds.")
    ] = "wall",
    auth: Annotated[bool | None, typer.Option("--auth/--no-auth", help="Ask for a key; default: only beyond loopback.")] = None,
    allowed_host: Annotated[list[str] | None, typer.Option("--allowed-host", help="Name that clients use; may be repeated.")] = None,
    traces: Annotated[bool, typer.Option("--traces", help="Send OpenTelemetry traces, as the OTEL_* variables say.")] = False,
    home: HomeOption = None,
) -> None:
    """Answer requests over HTTP with the released model, until told to stop."""
    from pipelines.serving import clock, server

    state = home_at(home)
    given = server.orders(
        state,
        host,
        clock=clock.starting(state, now),
        auth=auth,
        hosts=tuple(allowed_host or ()),
        traces=traces,
    )
    listening = server.bound(host, port)
    name = f"[{host}]" if ":" in host and not host.startswith("[") else host
    address = f"http://{name}:{listening.getsockname()[1]}/"

    def ready(count: int) -> None:
        out.print(
            f"[bold]{address}[/] {count} of {workers} processes answer; keys are {'asked for' if given.auth else 'off'}", highlight=False
        )

    server.Supervisor(given, listening, workers).run(ready)


@key.command("create")
def create(
    name: Annotated[str, typer.Option("--name", help="Whose it is.")],
    scope: Annotated[list[str], typer.Option("--scope", help="recommend | events | explain | metrics | admin; may be repeated.")],
    rate: Annotated[
        float | None, typer.Option("--requests-per-second", min=0.01, help="Its own limit; default: that of the settings.")
    ] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Make a key; its text is shown this once and kept nowhere."""
    from pipelines.serving import auth, clock

    made, text = auth.create(home_at(home), name, tuple(dict.fromkeys(scope)), clock.wall(), rate)
    answer(as_json, "key", {**_shown(made), "key": text})


@key.command("list")
def listed(as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Show the keys; their texts are kept nowhere."""
    from pipelines.serving import auth

    kept = auth.keys(home_at(home))
    answer(as_json, "keys", {key_id: _shown(made) if as_json else _line(_shown(made)) for key_id, made in kept.items()})


@key.command("revoke")
def revoke(key_id: KeyOption, as_json: JsonOption = False, home: HomeOption = None) -> None:
    """End a key; services that run refuse it within a second."""
    from pipelines.serving import auth, clock

    answer(as_json, "key", _shown(auth.revoke(home_at(home), key_id, clock.wall())))


def _shown(made: Any) -> dict[str, Any]:
    return {
        "key_id": made.key_id,
        "name": made.name,
        "scopes": list(made.scopes),
        "created_at": made.created_at,
        "requests_per_second": made.requests_per_second,
        "revoked_at": made.revoked_at,
    }


def _line(shown: dict[str, Any]) -> str:
    ended = f", revoked {shown['revoked_at']}" if shown["revoked_at"] else ""
    return f"{shown['name']}: {', '.join(shown['scopes'])}, since {shown['created_at']}{ended}"
