"""function.toml: what a function says about itself, read and checked."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medes import limits, plugins
from medes.errors import AlreadyExistsError, InvalidArgumentError, LimitExceededError, NotFoundError
from medes.plugins import Kind
from medes.types import LifecycleSettings

MANIFEST_NAME = "function.toml"
MANIFEST_BYTES_MAX = 1 << 20
FUNCTIONS_PER_FOLDER_MAX = 1000
INSTANCES_MAX = 1000
MEMORY_MB_MAX = 1 << 20
TIMEOUT_S_MAX = 900.0  # as AWS Lambda
TIMEOUT_S_DEFAULT = 30.0
CONTRACT_DEFAULT = "native"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_KEYS = {
    "name", "handler", "event", "idempotent", "tenant", "domain", "memory_mb", "instances", "timeout_s", "env",
    "lifecycle", "contract", "options",
}  # fmt: skip
_LIFECYCLE_KEYS = {
    "idle_period_ms",
    "keep_alive_period_ms",
    "keep_dedup_period_ms",
    "activity_lease_ms",
    "disabled",
}


@dataclass(frozen=True)
class FunctionSpec:
    """A checked function.toml."""

    name: str
    handler: str
    folder: Path
    event: Any
    idempotent: bool
    tenant: str = "default"
    domain: str = ""
    memory_mb: int = 0  # 0: not declared
    instances: int = 0  # 0: the caller's default
    timeout_s: float = TIMEOUT_S_DEFAULT
    env: dict[str, str] = field(default_factory=dict)
    lifecycle: LifecycleSettings = field(default_factory=LifecycleSettings)
    contract: str = CONTRACT_DEFAULT
    options: dict[str, Any] = field(default_factory=dict)  # only the contract knows what they mean

    @property
    def path(self) -> Path:
        """Of its function.toml."""
        return self.folder / MANIFEST_NAME

    def seeded_event(self, seed: int) -> Any:
        """The event with another input: its integer `seed` replaced. An event without one is returned as it is."""
        if isinstance(self.event, dict) and type(self.event.get("seed")) is int:
            return {**self.event, "seed": seed}
        return self.event


class _Reader:
    """Takes typed values out of a TOML table and says what is wrong with them."""

    def __init__(self, path: Path, table: dict[str, Any]) -> None:
        self.path = path
        self.table = table

    def wrong(self, message: str, hint: str = "") -> InvalidArgumentError:
        return InvalidArgumentError(message, object=str(self.path), hint=hint or "see docs/functions.md")

    def only(self, known: set[str], where: str = "") -> None:
        unknown = sorted(set(self.table) - known)
        if unknown:
            raise self.wrong(f"unknown key {where}{unknown[0]!r}", f"known keys: {', '.join(sorted(known))}")

    def text(self, key: str, default: str | None = None) -> str:
        value = self.table.get(key, default)
        if value is None:
            raise self.wrong(f"{key!r} is missing")
        if not isinstance(value, str) or (not value and default != ""):
            raise self.wrong(f"{key!r} must be a string that is not empty")
        if len(value) > limits.NAME_CHARS_MAX:
            raise self.wrong(f"{key!r} has {len(value)} characters; at most {limits.NAME_CHARS_MAX}")
        return value

    def name(self, key: str, default: str | None = None) -> str:
        value = self.text(key, default)
        if value and not _NAME.fullmatch(value):
            raise self.wrong(
                f"{key!r} is {value!r}", "letters, digits, '.', '_' and '-', the first a letter or digit"
            )
        return value

    def number(self, key: str, default: int, smallest: int, largest: int) -> int:
        value = self.table.get(key, default)
        if type(value) is not int:
            raise self.wrong(f"{key!r} must be a whole number, not {value!r}")
        if key in self.table and not smallest <= value <= largest:
            raise self.wrong(f"{key!r} is {value}; it must be {smallest}..{largest}")
        return value

    def flag(self, key: str, default: bool | None) -> bool:
        value = self.table.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(
                f"{key!r} must be true or false" + ("" if key in self.table else ", and is missing")
            )
        return value


def load(folder: Path | str) -> FunctionSpec:
    """Reads `folder`/function.toml and has its contract check it. The function's code is not loaded: that happens in the
    instance.

    Raises NotFoundError when it is not there, InvalidArgumentError saying which key is wrong, LimitExceededError for an
    event larger than EVENT_BYTES_MAX, and UnsupportedError for a contract that cannot be imported.
    """
    folder = Path(folder).resolve()
    path = folder / MANIFEST_NAME
    table = _parse(path)
    reader = _Reader(path, table)
    reader.only(_KEYS)
    spec = FunctionSpec(
        name=reader.name("name"),
        handler=reader.text("handler"),
        folder=folder,
        event=_event(reader, folder),
        idempotent=reader.flag("idempotent", None),
        tenant=reader.name("tenant", "default"),
        domain=reader.name("domain", ""),
        memory_mb=reader.number("memory_mb", 0, 1, MEMORY_MB_MAX),
        instances=reader.number("instances", 0, 1, INSTANCES_MAX),
        timeout_s=_timeout(reader),
        env=_environment(reader),
        lifecycle=_lifecycle(reader),
        contract=_contract(reader),
        options=_options(reader),
    )
    plugins.load(Kind.FUNCTION_CONTRACT, spec.contract).check(spec)
    return spec


def load_all(directory: Path | str) -> list[FunctionSpec]:
    """The functions in the folders of a directory, by name; a directory with a function.toml is one function.

    Raises NotFoundError when there is none, AlreadyExistsError when two have one name, and what load() raises.
    """
    directory = Path(directory).resolve()
    if not directory.is_dir():
        raise NotFoundError("no such directory", object=str(directory))
    if (directory / MANIFEST_NAME).is_file():
        return [load(directory)]
    folders = sorted(child.parent for child in directory.glob(f"*/{MANIFEST_NAME}"))
    if not folders:
        raise NotFoundError(
            "no functions here",
            object=str(directory),
            hint=f"each function is a folder with a {MANIFEST_NAME}",
        )
    if len(folders) > FUNCTIONS_PER_FOLDER_MAX:
        raise LimitExceededError(
            f"{len(folders)} functions; at most {FUNCTIONS_PER_FOLDER_MAX}", object=str(directory)
        )
    found: dict[str, FunctionSpec] = {}
    for folder in folders:
        spec = load(folder)
        if spec.name in found:
            raise AlreadyExistsError(
                f"function {spec.name!r} is also in {found[spec.name].folder}", object=str(spec.folder)
            )
        found[spec.name] = spec
    return sorted(found.values(), key=lambda spec: spec.name)


def bundled_directory() -> Path:
    """Where the ten functions of the project lie."""
    return Path(__file__).resolve().parents[1] / "workloads"


def _parse(path: Path) -> dict[str, Any]:
    try:
        size_bytes = path.stat().st_size
        if size_bytes > MANIFEST_BYTES_MAX:
            raise LimitExceededError(f"{size_bytes} bytes; at most {MANIFEST_BYTES_MAX}", object=str(path))
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(
            "no such file", object=str(path), hint=f"a function is a folder with a {MANIFEST_NAME}"
        ) from None
    except UnicodeDecodeError:
        raise InvalidArgumentError("not UTF-8 text", object=str(path)) from None
    except tomllib.TOMLDecodeError as error:
        raise InvalidArgumentError(f"not TOML: {error}", object=str(path)) from None
    except OSError as error:
        raise InvalidArgumentError(f"cannot be read: {error.strerror}", object=str(path)) from None


def _contract(reader: _Reader) -> str:
    name = reader.text("contract", CONTRACT_DEFAULT)
    choices = plugins.names(Kind.FUNCTION_CONTRACT)
    if name not in choices:
        raise reader.wrong(
            f"'contract' is {name!r}, and there is none of that name", f"one of {', '.join(choices)}"
        )
    return name


def _options(reader: _Reader) -> dict[str, Any]:
    value = reader.table.get("options", {})
    if not isinstance(value, dict):
        raise reader.wrong("'options' must be a table")
    return dict(value)


def _event(reader: _Reader, folder: Path) -> Any:
    value = reader.table.get("event", {})
    if isinstance(value, str):
        path = (folder / value).resolve()
        if not path.is_relative_to(folder):
            raise reader.wrong(f"'event' names {value!r}, which is outside the function's folder")
        try:
            if path.stat().st_size > limits.EVENT_BYTES_MAX:
                raise LimitExceededError(
                    f"event is larger than {limits.EVENT_BYTES_MAX} bytes", object=str(path)
                )
            return json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise reader.wrong(f"'event' names {value!r}: {error.strerror}") from None
        except ValueError as error:
            raise InvalidArgumentError(f"not JSON: {error}", object=str(path)) from None
    if not isinstance(value, dict):
        raise reader.wrong("'event' must be a table, or the path of a JSON file as a string")
    try:
        encoded = json.dumps(value)
    except TypeError as error:
        raise reader.wrong(f"'event' cannot be JSON: {error}") from None
    if len(encoded) > limits.EVENT_BYTES_MAX:
        raise LimitExceededError(
            f"event is larger than {limits.EVENT_BYTES_MAX} bytes", object=str(reader.path)
        )
    return value


def _timeout(reader: _Reader) -> float:
    value = reader.table.get("timeout_s", TIMEOUT_S_DEFAULT)
    if type(value) not in (int, float) or not 0 < value <= TIMEOUT_S_MAX:
        raise reader.wrong(
            f"'timeout_s' is {value!r}; it must be a number above 0, at most {TIMEOUT_S_MAX:g}"
        )
    return float(value)


def _environment(reader: _Reader) -> dict[str, str]:
    value = reader.table.get("env", {})
    if not isinstance(value, dict):
        raise reader.wrong("'env' must be a table of strings")
    for key, text in value.items():
        if not isinstance(text, str) or "\0" in text + key or "=" in key or not key:
            raise reader.wrong(f"'env.{key}' must be a string without null characters")
    return dict(value)


def _lifecycle(reader: _Reader) -> LifecycleSettings:
    value = reader.table.get("lifecycle", {})
    if not isinstance(value, dict):
        raise reader.wrong("'lifecycle' must be a table")
    inner = _Reader(reader.path, value)
    inner.only(_LIFECYCLE_KEYS, "lifecycle.")
    periods = {
        key: inner.number(key, 0, 1, limits.PERIOD_MS_MAX) for key in sorted(_LIFECYCLE_KEYS - {"disabled"})
    }
    return LifecycleSettings(**periods, disabled=inner.flag("disabled", False))
