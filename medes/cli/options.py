"""What the commands share: options made from settings, error → exit code, JSON output."""

from __future__ import annotations

import dataclasses
import enum
import typing
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medes.errors import MedesError
from medes.places import DEFAULT_AGENT_ADDRESS, DEFAULT_CONTROLLER_ADDRESS
from medes.rpc.tls import PLAINTEXT, Plaintext, TlsFiles

if TYPE_CHECKING:  # only the daemons' commands have settings
    from medes.config import Settings

F = Callable[..., Any]
DEBUG_VARIABLE = "MEDES_DEBUG"


def settings_options(cls: type[Settings]) -> Callable[[F], F]:
    """Adds --config and one option per setting; all default to None so that file and environment show through."""

    def decorate(function: F) -> F:
        hints = typing.get_type_hints(cls)
        options = [
            click.option(
                "--config", type=click.Path(path_type=Path, dir_okay=False), help="TOML settings file."
            )
        ]
        for f in dataclasses.fields(cls):
            if f.name == "tls" or "table" in f.metadata:
                continue
            flag = "--" + f.name.replace("_", "-")
            default = f"0o{f.default:o}" if f.name.endswith("_mode") else f.default
            if isinstance(default, tuple):
                default = ",".join(default)
            text = f"{f.metadata['help']}  [{default}]"
            if hints[f.name] is bool:
                options.append(click.option(f"{flag}/--no-{flag[2:]}", f.name, default=None, help=text))
            else:
                options.append(click.option(flag, f.name, type=str, default=None, help=text))
            if was := f.metadata.get("was"):
                options.append(click.option("--" + was.replace("_", "-"), was, default=None, hidden=True))
        for f in dataclasses.fields(TlsFiles):
            options.append(
                click.option(f"--tls-{f.name.replace('_', '-')}", f"tls_{f.name}", default=None, hidden=False)
            )
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def json_option(function: F) -> F:
    """--json, for every command that reports."""
    text = "One JSON document instead of text."
    return click.option("--json", "as_json", is_flag=True, help=text)(function)


def json_lines_option(function: F) -> F:
    """--json, for benchmarks: a line as soon as its case is measured."""
    text = "One JSON line per case instead of text."
    return click.option("--json", "as_json", is_flag=True, help=text)(function)


def agent_option(function: F) -> F:
    """--agent ADDRESS and TLS files, for commands that call the restore API."""
    return _address_option("--agent", "MEDES_AGENT", DEFAULT_AGENT_ADDRESS, "the agent's restore API")(
        function
    )


def controller_option(function: F) -> F:
    """--controller ADDRESS and TLS files, for commands that ask the controller: of several with commas, the first that
    answers."""
    what = "the controller; of several, with commas, the first that answers"
    return _address_option("--controller", "MEDES_CONTROLLER", DEFAULT_CONTROLLER_ADDRESS, what)(function)


def _address_option(flag: str, variable: str, default: str, what: str) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for name in ("server-name", "ca", "private-key", "certificate"):
            function = click.option(
                f"--tls-{name}",
                envvar=f"{variable}_TLS_{name.replace('-', '_').upper()}",
                default="",
                help=f"TLS {name}.",
            )(function)
        function = click.option(
            "--plaintext",
            is_flag=True,
            envvar=f"{variable}_PLAINTEXT",
            help="No TLS, for a cluster that runs with insecure_plaintext.",
        )(function)
        return click.option(
            flag, "address", envvar=variable, default=default, show_default=True, help=f"Address of {what}."
        )(function)

    return decorate


def tls_from(options: dict[str, Any]) -> TlsFiles | Plaintext:
    """What a command's options say of TLS (removes them from the dict); without any, the cluster folder is used."""
    files = TlsFiles(
        **{f.name: options.pop(f"tls_{f.name}", None) or "" for f in dataclasses.fields(TlsFiles)}
    )
    return PLAINTEXT if options.pop("plaintext", False) else files


def jsonable(value: Any) -> Any:
    """Dataclasses, enums, tuples and bytes as JSON types; enum states by their lower-case name."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.name.lower()
    if isinstance(value, dict):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    if isinstance(value, bytes):
        return value.hex()
    return value


def print_error(error: MedesError) -> None:
    """On stderr, as every command reports one."""
    click.echo(f"medes: {error.code}: {error}", err=True)


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    import json

    click.echo(json.dumps(jsonable(value), indent=2))
