"""`medes function`: run a function host, deploy functions to it, call them, list them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from medes.cli.format import table
from medes.cli.options import json_option, print_json
from medes.errors import InvalidArgumentError, LimitExceededError
from medes.limits import EVENT_BYTES_MAX
from medes.places import DEFAULT_AGENT_ADDRESS, RUNTIME_DIR
from medes.units import bytes_text

DEFAULT_SOCKET = f"{RUNTIME_DIR}/functions.sock"
socket_option = click.option(
    "--host",
    "socket_path",
    envvar="MEDES_FUNCTION_HOST",
    default=DEFAULT_SOCKET,
    show_default=True,
    type=click.Path(path_type=Path),
    help="Control socket of the function host.",
)


@click.group()
def cli() -> None:
    """Deploy, invoke and list functions of the project's own host."""


@cli.command()
@socket_option
@click.option(
    "--agent",
    "agents",
    multiple=True,
    envvar="MEDES_AGENT",
    help=f"Restore API of a node on this machine; repeat for several nodes.  [{DEFAULT_AGENT_ADDRESS}]",
)
@click.option(
    "--log-dir", type=click.Path(path_type=Path, file_okay=False), help="Instances' output goes here."
)
def serve(socket_path: Path, agents: tuple[str, ...], log_dir: Path | None) -> None:
    """Run a function host in the foreground until it is interrupted; its instances end with it."""
    asyncio.run(_serve(socket_path.absolute(), agents or (DEFAULT_AGENT_ADDRESS,), log_dir))


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--instances", type=click.IntRange(1), help="Warm instances to start.  [that of function.toml, or 1]"
)
@socket_option
@json_option
def deploy(folder: Path, instances: int | None, socket_path: Path, as_json: bool) -> None:
    """Deploy the function in FOLDER, which holds a function.toml (see docs/functions.md)."""
    answer = _call(
        socket_path, "POST", "/functions", {"folder": str(folder.resolve()), "instances": instances}
    )
    if as_json:
        print_json(answer)
        return
    places = ", ".join(f"{i['instance_id']} on {i['node_id']} (pid {i['pid']})" for i in answer["instances"])
    click.echo(f"{answer['name']}: {places}")


@cli.command()
@click.argument("name")
@click.option(
    "--event", "event_text", help="The event: JSON, @FILE, or - for stdin.  [that of function.toml]"
)
@click.option("--instance", "instance_id", default="", help="This instance and no other.")
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(0.001, 900), help="Seconds.  [that of function.toml]"
)
@socket_option
@json_option
def invoke(
    name: str,
    event_text: str | None,
    instance_id: str,
    timeout_s: float | None,
    socket_path: Path,
    as_json: bool,
) -> None:
    """Call function NAME and print its result; how it was started goes to stderr."""
    from medes.runtimes.host import control

    body = {"event": _event(event_text), "instance_id": instance_id, "timeout_s": timeout_s}
    answer = _call(socket_path, "POST", control.function_target(name, "invocations"), body)
    if as_json:
        print_json(answer)
        return
    click.echo(json.dumps(answer["result"], indent=2, ensure_ascii=False))
    click.echo(f"{answer['start']} start on {answer['instance_id']}, {answer['total_ms']:.1f} ms", err=True)


@cli.command(name="ls")
@socket_option
@json_option
def list_functions(socket_path: Path, as_json: bool) -> None:
    """List the deployed functions and their instances."""
    answer = _call(socket_path, "GET", "/functions")
    if as_json:
        print_json(answer)
        return
    rows = [row for function in answer["functions"] for row in _rows(function)]
    if rows:
        table(["function", "instance", "node", "pid", "state", "requests", "warm", "kept"], rows)
    else:
        click.echo("nothing is deployed")


def _rows(function: dict[str, Any]) -> list[list[str]]:
    """One an instance; a function without any has a row too."""
    if not function["instances"]:
        return [[function["name"], *["-"] * 7]]
    return [
        [
            function["name"],
            row["instance_id"],
            row["node_id"],
            str(row["pid"]),
            row["state"],
            str(row["requests"]),
            *(bytes_text(size) if size else "-" for size in (row["warm_bytes"], row["kept_bytes"])),
        ]
        for row in function["instances"]
    ]


@cli.command()
@click.argument("name")
@socket_option
def rm(name: str, socket_path: Path) -> None:
    """End the instances of function NAME and forget it."""
    from medes.runtimes.host import control

    _call(socket_path, "DELETE", control.function_target(name))


def _call(path: Path, method: str, target: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    from medes.runtimes.host import control

    return asyncio.run(control.call(path, method, target, body))


def _event(text: str | None) -> Any:
    if text is None:
        return None
    if text == "-":
        text = sys.stdin.read(EVENT_BYTES_MAX + 1)
    elif text.startswith("@"):
        try:
            with Path(text[1:]).open(encoding="utf-8") as stream:
                text = stream.read(EVENT_BYTES_MAX + 1)
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidArgumentError(f"cannot read: {error}", object=text[1:]) from None
    if len(text) > EVENT_BYTES_MAX:
        raise LimitExceededError(f"an event has at most {EVENT_BYTES_MAX} bytes", object="--event")
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidArgumentError(f"not JSON: {error}", object="--event") from None


async def _serve(path: Path, agents: tuple[str, ...], log_dir: Path | None) -> None:
    from medes.runtimes.host.control import ControlServer
    from medes.runtimes.host.host import FunctionHost
    from medes.runtimes.host.janitor import JanitorClient

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="medes-host-")))
        janitor = JanitorClient()
        stack.callback(janitor.close)
        janitor.folder(folder)
        host = FunctionHost(
            agents,
            folder,
            hook_address=f"unix:{path}",
            log_dir=log_dir / "logs" if log_dir else None,
            on_process=janitor.process,
        )
        server = ControlServer(host, path)
        try:
            await host.start()
            await server.start()  # last: where the socket is, a deployment finds its nodes
            click.echo(f"function host on {path}, nodes {', '.join(sorted(host.nodes))}", err=True)
            await stop.wait()
        finally:
            await server.close()
            await host.close()
