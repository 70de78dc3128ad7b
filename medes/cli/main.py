"""The `medes` command. Subcommands load only when used: `medes sandbox ls` imports no controller and no agent."""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import sys

import click

from medes import __version__
from medes.cli.options import DEBUG_VARIABLE, print_error
from medes.errors import InternalError, MedesError

# command → (module, attribute, one line for --help). A command whose module is not installed is not offered.
COMMANDS: dict[str, tuple[str, str]] = {
    "agent": ("medes.cli.agent", "Run the agent of a node."),
    "base": ("medes.cli.base", "List and remove the base pages that a node holds."),
    "bench": (
        "medes.cli.bench",
        "Measure: activity, asleep, connections, dedup, images, reclaim, registry, restore, transport.",
    ),
    "certs": ("medes.cli.certs", "Make the cluster's CA and certificates, renew and show them."),
    "controller": ("medes.cli.controller", "Run the controller."),
    "demo": ("medes.cli.demo", "Dedup and restore real functions on a small cluster."),
    "doctor": ("medes.cli.doctor", "Say what works on this machine and how to get the rest."),
    "eval": ("medes.cli.eval", "Measure with evaluation cases: repeated, resumed, one file a case."),
    "function": ("medes.cli.function", "Deploy, invoke and list functions of the project's own host."),
    "inspect": ("medes.cli.inspect", "Look into the files of a node's stores."),
    "orphans": ("medes.cli.orphans", "List and remove files that an agent does not know the use of."),
    "sandbox": ("medes.cli.sandbox", "List, register, dedup, restore and remove sandboxes."),
    "top": ("medes.cli.top", "Watch the cluster: nodes, memory, sandboxes."),
}
EXIT_INTERRUPTED = 128 + signal.SIGINT


class Interrupted(BaseException):
    """Ctrl-C, past click, which would print an empty line for it."""


class LazyGroup(click.Group):
    """Imports medes.cli.<command> when the command is used; each module has a click command `cli`."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name, (module, _) in COMMANDS.items() if importlib.util.find_spec(module)]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS or not importlib.util.find_spec(COMMANDS[name][0]):
            return None
        return importlib.import_module(COMMANDS[name][0]).cli  # type: ignore[no-any-return]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, COMMANDS[name][1]) for name in self.list_commands(ctx)]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="medes")
def cli() -> None:
    """Memory deduplication for serverless sandboxes."""


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits: 0 done, 2 wrong usage, else the exit code of the error's class."""
    code = run(arguments)
    # All is done and said: a Ctrl-C that comes while the interpreter takes itself down (some 40 ms after a demo)
    # would only make a success look like a failure.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)


def run(arguments: list[str] | None = None) -> int:
    """The same, but returns the exit code."""
    try:
        result = cli.main(arguments, prog_name="medes", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, Interrupted, KeyboardInterrupt):
        # A terminal has written ^C where the cursor was.
        click.echo("\n" * sys.stderr.isatty() + "interrupted", err=True)
        return EXIT_INTERRUPTED
    except MedesError as error:
        print_error(error)
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output (head, less) has gone: nothing is left to say.
        sys.stderr.close()
        return 0
    except (
        Exception
    ) as error:  # nothing foresaw it: whatever it is, the user gets one line and a code of its own
        if os.environ.get(DEBUG_VARIABLE):
            import traceback

            traceback.print_exc()
        hint = f"a bug in Medes; {DEBUG_VARIABLE}=1 shows where"
        print_error(InternalError(f"{type(error).__name__}: {error}", hint=hint))
        return InternalError.exit_code
    return result if isinstance(result, int) else 0
