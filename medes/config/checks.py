"""What a settings field may hold, said beside its default."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

from medes.errors import InvalidArgumentError
from medes.limits import CONTROLLERS_MAX, NAME_CHARS_MAX
from medes.rpc.address import parse_address

ALL_DOMAINS = "*"
_MODE = re.compile(r"[67][06]0")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def setting(default: Any, help: str, **checks: Any) -> Any:
    """A settings field. Checks: minimum, maximum, choices, mode, address (True | "optional"), addresses, name, path,
    domains. `was`: the name that it had, which is taken as well."""
    return field(default=default, metadata={"help": help, **checks})


def check_field(name: str, value: Any, rules: Mapping[str, Any]) -> None:
    if value is None or "table" in rules:
        for key, overrides in (value or {}).items():
            check_name(f"{name}.{key}", key)
            for f in dataclasses.fields(overrides):
                check_field(f"{name}.{key}.{f.name}", getattr(overrides, f.name), f.metadata)
        return
    if "choices" in rules:
        choices = rules["choices"]() if callable(rules["choices"]) else rules["choices"]
        if value not in choices:
            raise InvalidArgumentError(
                f"{value!r} is not allowed", object=name, hint="one of " + ", ".join(choices)
            )
    if "mode" in rules and not _MODE.fullmatch(f"{value:03o}"):
        # 600 is 0o1130 and 400 is 0o620: whoever forgot the 0o must not get a socket that others may use.
        raise InvalidArgumentError(
            f"{value} is 0o{value:o}, no mode of a socket",
            object=name,
            hint="0o600 or 0o660, with the 0o; other users have a socket of their own: user_socket",
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidArgumentError("must be a finite number", object=name)
    if "minimum" in rules and value < rules["minimum"]:
        raise InvalidArgumentError(f"{value} is too small", object=name, hint=f"at least {rules['minimum']}")
    if "maximum" in rules and value > rules["maximum"]:
        raise InvalidArgumentError(f"{value} is too large", object=name, hint=f"at most {rules['maximum']}")
    if "address" in rules and (value or rules["address"] is True):
        check_address(name, value)
    if "addresses" in rules:
        check_addresses(name, value)
    if "name" in rules and (value or rules["name"] is True):
        check_name(name, value)
    if "domains" in rules:
        for domain in parse_domains(value) - {ALL_DOMAINS}:
            check_name(name, domain)
    if "path" in rules and (value or rules["path"] is True):
        check_dir(name, value)


def check_periods(idle_s: float, keep_alive_s: float, object: str) -> None:
    """Raises invalid_argument for periods in force together under which nothing would ever be dedup'd."""
    if keep_alive_s <= idle_s:
        raise InvalidArgumentError(
            f"a keep-alive period of {keep_alive_s:g} s ends before an idle period of {idle_s:g} s: "
            "it would never be dedup'd",
            object=object,
            hint="make the keep-alive period the longer one, or disable its timers",
        )


def check_name(name: str, value: str) -> None:
    if len(value) > NAME_CHARS_MAX or not _NAME.fullmatch(value):
        raise InvalidArgumentError(
            f"{value[:50]!r} is not a name",
            object=name,
            hint=f"letters, digits, '.', '_', '-', at most {NAME_CHARS_MAX} characters",
        )


def check_address(name: str, value: str) -> None:
    try:
        parse_address(value, allow_port_zero=True)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{value!r}: {error.message}", object=name, hint=error.hint) from None


def check_addresses(name: str, values: tuple[str, ...]) -> None:
    if len(values) > CONTROLLERS_MAX:
        raise InvalidArgumentError(
            f"{len(values)} are too many", object=name, hint=f"at most {CONTROLLERS_MAX}"
        )
    for value in values:
        check_address(name, value)
        if values.count(value) > 1:
            raise InvalidArgumentError(f"{value!r} is named twice", object=name)


def check_dir(name: str, value: str) -> None:
    # The agent removes files under these folders: a relative or dotted path could point anywhere.
    if not value.startswith("/") or ".." in Path(value).parts or value == "/":
        raise InvalidArgumentError(
            f"{value!r} is not usable", object=name, hint="an absolute folder without '..'"
        )


def parse_domains(text: str) -> frozenset[str]:
    """The names in a list with commas; none of an empty one."""
    return frozenset(filter(None, (part.strip() for part in text.split(","))))
