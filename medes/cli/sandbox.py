"""medes sandbox {ls,explain,register,dedup,restore,rm}: the restore API from the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from medes.cli.explanation import explanation, restored_text, saved_text
from medes.cli.format import maybe_bytes_text, table, wide_console
from medes.cli.options import agent_option, json_option, print_error, print_json, tls_from
from medes.errors import MedesError
from medes.types import LifecycleSettings, Sandbox
from medes.units import bytes_text, duration_text

if TYPE_CHECKING:
    from medes.client import MedesClient


def _connect(address: str, options: dict[str, Any]) -> MedesClient:
    from medes.client import MedesClient  # not for --help

    return MedesClient(address, tls=tls_from(options))


# A terminal below this shows less; what is no terminal shows all.
WIDE_COLUMNS = 180
WIDE_ONLY = ("present", "tick set", "base share", "saved ever")


@click.group()
def cli() -> None:
    """List, register, dedup, restore and remove sandboxes of a node."""


@cli.command("ls")
@click.option("--function", default="", help="Only this function's sandboxes.")
@json_option
@agent_option
def ls(address: str, function: str, as_json: bool, **options: Any) -> None:
    """List the sandboxes of the agent's node.

    What they save is told for now, and averaged over the last ten minutes and over all the time since they were registered
    (or the agent started).
    """
    with _connect(address, options) as client:
        sandboxes = client.list(function)
    if as_json:
        print_json(sandboxes)
        return
    wide = wide_console().width >= WIDE_COLUMNS
    rows = [_row(s) for s in sorted(sandboxes, key=lambda s: (s.function, s.sandbox_id))]
    shown = [name for name in _row(Sandbox("")) if wide or name not in WIDE_ONLY]
    table(shown, [[row[name] for name in shown] for row in rows])


def _row(s: Sandbox) -> dict[str, str]:
    peers = ", ".join(f"{peer} ({transport})" for peer, transport in sorted(s.transport_by_peer.items()))
    why = f": {s.lost_reason}" if s.lost_reason else f", waits: {s.waiting}" if s.waiting else ""
    return {
        "sandbox": s.sandbox_id,
        "function": s.function,
        "state": s.state.label + why,
        "since": duration_text(s.state_age_ms / 1000),
        "warm": bytes_text(s.warm_bytes),
        "kept": bytes_text(s.kept_bytes),
        "present": bytes_text(s.present_bytes),
        "tick set": bytes_text(s.tick_bytes),
        "touched": bytes_text(s.touched_bytes),
        "base share": maybe_bytes_text(s.base_share_bytes),
        "saved": maybe_bytes_text(s.saved_bytes),
        "saved 10 min": maybe_bytes_text(s.recent_saved_bytes),
        "saved ever": maybe_bytes_text(s.mean_saved_bytes),
        "base": "yes" if s.is_base else "",
        "dedups": str(s.dedup_count),
        "restores": str(s.restore_count),
        "pages from": peers,
    }


@cli.command("explain")
@click.argument("sandbox_id")
@json_option
@agent_option
def explain(address: str, sandbox_id: str, as_json: bool, **options: Any) -> None:
    """Say why a sandbox is in its state, what it holds, what its last ops did and what happens next."""
    with _connect(address, options) as client:
        found = client.explain(sandbox_id)
    if as_json:
        print_json(found)
    else:
        click.echo("\n".join(explanation(found)))


@cli.command("register")
@click.argument("function")
@click.option(
    "--pid", "pids", type=click.IntRange(min=1), multiple=True, help="Root process; repeat for more."
)
@click.option(
    "--cgroup",
    default="",
    help="All processes of this cgroup, instead of --pid: a folder, a line of /proc/PID/cgroup, an engine's path.",
)
@click.option(
    "--subject", default="", help="What a driver without processes knows it by, instead of --pid or --cgroup."
)
@click.option("--id", "sandbox_id", default="", help="Name of the sandbox; the agent makes one without it.")
@click.option("--tenant", default="", help="Owner of the sandbox.")
@click.option("--domain", default="", help="Dedup domain; the tenant without it.")
@click.option("--driver", default="", help="How its memory is taken; the agent's setting without it.")
@click.option(
    "--hook", "hook_address", default="", help="Unix socket of a host's before-dedup and after-restore hooks."
)
@click.option("--idle-ms", "idle_period_ms", type=click.IntRange(min=0), default=0, help="Idle period.")
@click.option(
    "--keep-alive-ms",
    "keep_alive_period_ms",
    type=click.IntRange(min=0),
    default=0,
    help="Keep-alive period.",
)
@click.option(
    "--keep-dedup-ms",
    "keep_dedup_period_ms",
    type=click.IntRange(min=0),
    default=0,
    help="Keep-dedup period.",
)
@click.option(
    "--activity-lease-ms",
    "activity_lease_ms",
    type=click.IntRange(min=0),
    default=0,
    help="Running without a begin or an end for this long: idle again.",
)
@click.option("--no-timers", is_flag=True, help="Never dedup or purge on the agent's own motion.")
@click.option("--purge-kills", is_flag=True, help="Removing the sandbox ends its processes.")
@json_option
@agent_option
def register(
    address: str,
    function: str,
    as_json: bool,
    idle_period_ms: int,
    keep_alive_period_ms: int,
    keep_dedup_period_ms: int,
    activity_lease_ms: int,
    no_timers: bool,
    **options: Any,
) -> None:
    """Put processes under the agent's care as a warm sandbox of FUNCTION."""
    lifecycle = LifecycleSettings(
        idle_period_ms, keep_alive_period_ms, keep_dedup_period_ms, no_timers, activity_lease_ms
    )
    with _connect(address, options) as client:
        sandbox = client.register(function, lifecycle=lifecycle, **options)
    if as_json:
        print_json(sandbox)
    else:
        click.echo(sandbox.sandbox_id)


@cli.command("dedup")
@click.argument("sandbox_id")
@click.option("--make-base", is_flag=True, help="Publish its pages as a base first.")
@click.option("--hold-frozen", is_flag=True, help="Hold it stopped until it is restored by a call.")
@json_option
@agent_option
def dedup(
    address: str, sandbox_id: str, make_base: bool, hold_frozen: bool, as_json: bool, **options: Any
) -> None:
    """Cut an idle sandbox down to patches and wait until that is done."""
    with _connect(address, options) as client:
        result = client.dedup(sandbox_id, make_base=make_base, hold_frozen=hold_frozen)
    if as_json:
        print_json(result)
        return
    report = result.report
    click.echo(
        f"{sandbox_id}: {bytes_text(report.warm_bytes)} warm, {saved_text(report)}; "
        f"{duration_text(report.total_us / 1e6)}, stopped for {duration_text(report.stopped_us / 1e6)}"
    )
    for note in report.notes:
        click.echo(f"  {note.text}")


@cli.command("restore")
@click.argument("sandbox_id")
@click.option("--eager", is_flag=True, help="Wait for the last page, not only until it runs.")
@click.option("--deadline-ms", type=click.IntRange(min=0), default=0, help="Longest wait for its turn.")
@json_option
@agent_option
def restore(
    address: str, sandbox_id: str, eager: bool, deadline_ms: int, as_json: bool, **options: Any
) -> None:
    """Wake a dedup'd sandbox."""
    with _connect(address, options) as client:
        result = client.restore(sandbox_id, eager=eager, queue_deadline_ms=deadline_ms)
    if as_json:
        print_json(result)
        return
    report = result.report
    if not report.was_dedup:
        click.echo(f"{sandbox_id}: was warm already")
        return
    click.echo(f"{sandbox_id}: {restored_text(report)}")


@cli.command("rm")
@click.argument("sandbox_ids", nargs=-1, required=True)
@json_option
@agent_option
def rm(address: str, sandbox_ids: tuple[str, ...], as_json: bool, **options: Any) -> int:
    """Remove sandboxes (their processes go on unless registered with --purge-kills).

    All are tried; each failure is reported, and the first one gives the exit code.
    """
    removed, failures = [], []
    with _connect(address, options) as client:
        for sandbox_id in sandbox_ids:
            try:
                client.purge(sandbox_id)
                removed.append(sandbox_id)
            except MedesError as error:
                print_error(error)
                failures.append(error)
    if as_json:
        print_json({"removed": removed})
    return failures[0].exit_code if failures else 0
