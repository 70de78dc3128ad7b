"""Defaults ← TOML file ← environment ← command line."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from medes.config.settings import Settings
from medes.errors import InvalidArgumentError
from medes.limits import (
    SETTINGS_FILE_BYTES_MAX,
)
from medes.rpc.tls import TlsFiles

S = TypeVar("S", bound="Settings")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?B|B)?", re.IGNORECASE)
# What Kubernetes tells every container about a service that is called "medes-agent" or "medes-controller".
_SERVICE_LINK = re.compile(r"(SERVICE_(HOST|PORT.*)|PORT(_\d+_.*)?)")
_UNITS = {"B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}


def parse_size(text: str) -> int:
    """Bytes of "4096", "512MiB", "1.5GB". Raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise ValueError("not a size: write 4096, 512MiB or 8GiB")
    return int(float(match[1]) * _UNITS[(match[2] or "B").upper()]) if match[2] else int(match[1])


def load(
    cls: type[S],
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> S:
    """The checked settings. Flags that are None count as not given; `tls_ca` and the like set `tls`.

    Raises invalid_argument for an unknown key, a wrong type, a value out of bounds or a file that cannot be read.
    """
    environment = os.environ if environment is None else environment
    table = _read_file(file, cls.SECTION) if file else {}
    values = _from_table(cls, table, cls.SECTION)
    prefix = f"MEDES_{cls.SECTION.upper()}_"
    _refuse_unknown_variables(cls, prefix, environment)
    tls_values = {}
    for f in dataclasses.fields(cls):
        if f.name == "tls" or "table" in f.metadata:
            continue
        for given in (
            {name: environment.get(name) for name in (prefix + n.upper() for n in _names(f))},
            {"--" + name.replace("_", "-"): (flags or {}).get(name) for name in _names(f)},
        ):
            for source, raw in _once(given):
                values[f.name] = _convert(_hints(cls)[f.name], raw, source, f.name)
    for f in dataclasses.fields(TlsFiles):
        for raw in (environment.get(f"{prefix}TLS_{f.name.upper()}"), (flags or {}).get(f"tls_{f.name}")):
            if raw is not None:
                tls_values[f.name] = str(raw)
    if tls_values:
        values["tls"] = dataclasses.replace(values.get("tls", TlsFiles()), **tls_values)
    settings = cls(**values)
    settings.check()
    return settings


def _names(f: dataclasses.Field[Any]) -> list[str]:
    """A setting's name, and the one that it had."""
    return [f.name, *([f.metadata["was"]] if "was" in f.metadata else [])]


def _once(given: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What is given of a setting under one of its names. Raises invalid_argument when it is under both."""
    found = [(name, raw) for name, raw in given.items() if raw is not None]
    if len(found) > 1:
        raise InvalidArgumentError(f"{found[1][0]} is its old name: give one", object=found[0][0])
    return found


def _refuse_unknown_variables(cls: type, prefix: str, environment: Mapping[str, str]) -> None:
    """A mistyped variable must not leave a default in its setting's place."""
    fields = [f for f in dataclasses.fields(cls) if f.name != "tls" and "table" not in f.metadata]
    known = {prefix + name.upper() for f in fields for name in _names(f)}
    known |= {f"{prefix}TLS_{f.name.upper()}" for f in dataclasses.fields(TlsFiles)}
    for name in sorted(environment):
        if name.startswith(prefix) and name not in known and not _SERVICE_LINK.fullmatch(name[len(prefix) :]):
            raise InvalidArgumentError(
                "no such setting", object=name, hint=_closest(name, dict.fromkeys(known))
            )


def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _read_file(file: Path, section: str) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            data = stream.read(SETTINGS_FILE_BYTES_MAX + 1)
        if len(data) > SETTINGS_FILE_BYTES_MAX:
            raise InvalidArgumentError("too large for a settings file", object=str(file))
        parsed = tomllib.loads(data.decode())
    except OSError as error:
        raise InvalidArgumentError(f"cannot read: {error.strerror}", object=str(file)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"not TOML: {error}", object=str(file)) from error
    except RecursionError:
        raise InvalidArgumentError("not TOML: it nests too deeply", object=str(file)) from None
    unknown = set(parsed) - {"agent", "controller"}
    if unknown:
        raise InvalidArgumentError(
            f"unknown table [{sorted(unknown)[0]}]", object=str(file), hint="[agent] or [controller]"
        )
    table = parsed.get(section, {})
    if not isinstance(table, dict):
        raise InvalidArgumentError(f"{section} must be a table", object=str(file))
    return table


def _from_table(cls: type, table: Mapping[str, Any], where: str) -> dict[str, Any]:
    fields = {f.name: f for f in dataclasses.fields(cls)}
    renamed = {f.metadata["was"]: f.name for f in fields.values() if "was" in f.metadata}
    hints = _hints(cls)
    values: dict[str, Any] = {}
    for given, raw in table.items():
        name, key = f"{where}.{given}", renamed.get(given, given)
        if key not in fields:
            raise InvalidArgumentError("unknown setting", object=name, hint=_closest(key, fields))
        if key in values:
            raise InvalidArgumentError("given under its old name as well", object=f"{where}.{key}")
        if key == "tls":
            values[key] = TlsFiles(**_from_table(TlsFiles, _table(raw, name), name))
        elif "table" in fields[key].metadata:
            row = fields[key].metadata["table"]
            values[key] = {
                k: row(**_from_table(row, _table(v, f"{name}.{k}"), f"{name}.{k}"))
                for k, v in _table(raw, name).items()
            }
        else:
            values[key] = _convert(hints[key], raw, name, key)
    return values


def _table(raw: Any, name: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise InvalidArgumentError("must be a table", object=name)
    return raw


def _closest(key: str, fields: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(key, fields, n=1)
    return f"did you mean {close[0]}?" if close else "see docs/operations.md"


def _convert(hint: Any, raw: Any, name: str, field_name: str) -> Any:
    """A TOML, environment or flag value as the field's type. Raises invalid_argument."""
    if typing.get_origin(hint) is types.UnionType:
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
    try:
        if hint is bool:
            return _to_bool(raw)
        if isinstance(raw, bool):
            raise ValueError("not a boolean setting")
        if typing.get_origin(hint) is tuple:
            return _to_texts(raw)
        if hint is int:
            if isinstance(raw, float):
                raise ValueError("must be a whole number")
            if isinstance(raw, str):
                if field_name.endswith("_mode") and raw.isdecimal() and len(raw) > 1:
                    raise ValueError(f"write 0o{raw.lstrip('0')}")
                return parse_size(raw) if field_name.endswith("_bytes") else int(raw, 0)
            return int(raw)
        if hint is float:
            return float(raw)
        if not isinstance(raw, str):
            raise ValueError("must be text")
        return raw
    except (ValueError, TypeError) as error:
        raise InvalidArgumentError(f"{raw!r}: {error}", object=name) from None


def _to_texts(raw: Any) -> tuple[str, ...]:
    parts = raw.split(",") if isinstance(raw, str) else raw
    if not isinstance(parts, (list, tuple)) or not all(isinstance(part, str) for part in parts):
        raise ValueError("must be a list of texts, or one text with commas")
    return tuple(filter(None, (part.strip() for part in parts)))


def _to_bool(raw: Any) -> bool:
    if isinstance(raw, bool):
        return raw
    if isinstance(raw, str) and raw.lower() in ("1", "true", "yes", "on"):
        return True
    if isinstance(raw, str) and raw.lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError("must be true or false")
