"""function.toml: what is accepted, and that each fault is named."""

import re
from pathlib import Path

import pytest

from medes.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    LimitExceededError,
    MedesError,
    NotFoundError,
)
from medes.runtimes import manifest
from medes.types import LifecycleSettings

GOOD = 'name = "adder"\nhandler = "adder:handler"\nevent = { n = 1, seed = 3 }\nidempotent = true\n'


def write(folder: Path, text: str, code: str = "def handler(event, context):\n    return event\n") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "function.toml").write_text(text)
    (folder / "adder.py").write_text(code)
    return folder


def test_a_complete_manifest_is_read(tmp_path: Path) -> None:
    text = GOOD + (
        'tenant = "acme"\ndomain = "shared"\nmemory_mb = 128\ninstances = 4\ntimeout_s = 2.5\n'
        'env = { MODE = "fast" }\n[lifecycle]\nidle_period_ms = 50\nactivity_lease_ms = 70\ndisabled = true\n'
    )
    spec = manifest.load(write(tmp_path, text))
    assert (spec.name, spec.handler, spec.idempotent) == ("adder", "adder:handler", True)
    assert (spec.tenant, spec.domain, spec.memory_mb, spec.instances) == ("acme", "shared", 128, 4)
    assert spec.timeout_s == 2.5
    assert spec.env == {"MODE": "fast"}
    assert spec.lifecycle == LifecycleSettings(idle_period_ms=50, activity_lease_ms=70, disabled=True)


def test_only_the_seed_of_an_event_is_varied(tmp_path: Path) -> None:
    spec = manifest.load(write(tmp_path, GOOD))
    assert spec.seeded_event(9) == {"n": 1, "seed": 9}
    assert spec.event == {"n": 1, "seed": 3}
    plain = manifest.load(write(tmp_path / "plain", GOOD.replace("n = 1, seed = 3", "n = 1")))
    assert plain.seeded_event(9) == {"n": 1}


def test_an_event_may_be_a_json_file(tmp_path: Path) -> None:
    folder = write(tmp_path, GOOD.replace("{ n = 1, seed = 3 }", '"event.json"'))
    (folder / "event.json").write_text('{"text": "ä", "list": [1, null]}')
    assert manifest.load(folder).event == {"text": "ä", "list": [1, None]}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (('name = "adder"\n', ""), "'name' is missing"),
        (('name = "adder"', "name = 7"), "'name' must be a string"),
        (('name = "adder"', 'name = "../up"'), "'name' is '../up'"),
        (('name = "adder"', f'name = "{"n" * 201}"'), "201 characters"),
        (("adder:handler", "adder.handler"), "'handler' is 'adder.handler'"),
        (("adder:handler", "missing:handler"), "names module 'missing'"),
        (("idempotent = true", ""), "'idempotent' must be true or false, and is missing"),
        (("idempotent = true", 'idempotent = "yes"'), "'idempotent' must be true or false"),
        (("idempotent = true", "idempotent = true\ninstances = 0"), "'instances' is 0"),
        (("idempotent = true", "idempotent = true\nmemory_mb = true"), "'memory_mb' must be a whole number"),
        (("idempotent = true", "idempotent = true\ntimeout_s = 0"), "'timeout_s' is 0"),
        (("idempotent = true", "idempotent = true\nenv = { A = 1 }"), "'env.A' must be a string"),
        (("idempotent = true", "idempotent = true\nhander = 1"), "unknown key 'hander'"),
        (
            ("idempotent = true", "idempotent = true\nlifecycle = { idle = 1 }"),
            "unknown key lifecycle.'idle'",
        ),
        (("{ n = 1, seed = 3 }", "[1]"), "'event' must be a table"),
        (("{ n = 1, seed = 3 }", "{ at = 2020-01-01 }"), "'event' cannot be JSON"),
        (("{ n = 1, seed = 3 }", '"nowhere.json"'), "No such file"),
        (("{ n = 1, seed = 3 }", '"../event.json"'), "outside the function's folder"),
        (("idempotent = true", "idempotent = "), "not TOML"),
        (
            ("idempotent = true", 'idempotent = true\ncontract = "nativ"'),
            "'contract' is 'nativ', and there is none of that name (one of native)",
        ),
        (("idempotent = true", "idempotent = true\ncontract = 1"), "'contract' must be a string"),
        (("idempotent = true", "idempotent = true\noptions = 1"), "'options' must be a table"),
        (("idempotent = true", "idempotent = true\noptions = { port = 1 }"), "'options' has 'port'"),
    ],
)
def test_each_fault_is_named(tmp_path: Path, change: tuple[str, str], complaint: str) -> None:
    assert change[0] in GOOD
    folder = write(tmp_path / "adder", GOOD.replace(*change))
    (tmp_path / "event.json").write_text("{}")
    with pytest.raises(InvalidArgumentError, match=re.escape(complaint)) as caught:
        manifest.load(folder)
    assert str(folder / "function.toml") in caught.value.object


@pytest.mark.parametrize("content", ["{", '{"a": 1} x'])
def test_a_broken_event_file_is_named(tmp_path: Path, content: str) -> None:
    folder = write(tmp_path, GOOD.replace("{ n = 1, seed = 3 }", '"event.json"'))
    (folder / "event.json").write_text(content)
    with pytest.raises(InvalidArgumentError, match="not JSON") as caught:
        manifest.load(folder)
    assert caught.value.object.endswith("event.json")


def test_sizes_are_checked_before_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path, GOOD.replace("{ n = 1, seed = 3 }", '"event.json"'))
    (folder / "event.json").write_text('{"text": "' + "x" * 100 + '"}')
    monkeypatch.setattr(manifest.limits, "EVENT_BYTES_MAX", 64)
    with pytest.raises(LimitExceededError):
        manifest.load(folder)
    monkeypatch.setattr(manifest, "MANIFEST_BYTES_MAX", 8)
    with pytest.raises(LimitExceededError, match="at most 8"):
        manifest.load(folder)


def test_a_manifest_that_is_not_text(tmp_path: Path) -> None:
    folder = write(tmp_path, GOOD)
    (folder / "function.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidArgumentError, match="UTF-8"):
        manifest.load(folder)


def test_a_folder_of_functions(tmp_path: Path) -> None:
    write(tmp_path / "b", GOOD)
    write(tmp_path / "a", GOOD.replace('"adder"', '"other"'))
    (tmp_path / "not-a-function").mkdir()
    assert [spec.name for spec in manifest.load_all(tmp_path)] == ["adder", "other"]
    assert [spec.name for spec in manifest.load_all(tmp_path / "a")] == ["other"]


@pytest.mark.parametrize("path", ["empty", "nowhere", "file"])
def test_a_folder_without_functions(tmp_path: Path, path: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(NotFoundError):
        manifest.load_all(tmp_path / path)
    with pytest.raises(NotFoundError):
        manifest.load(tmp_path / path)


def test_two_functions_of_one_name(tmp_path: Path) -> None:
    write(tmp_path / "a", GOOD)
    write(tmp_path / "b", GOOD)
    with pytest.raises(AlreadyExistsError, match="adder"):
        manifest.load_all(tmp_path)


def test_the_bundled_functions_are_ten_and_idempotent() -> None:
    specs = manifest.load_all(manifest.bundled_directory())
    assert len(specs) == 10
    assert all(spec.idempotent and spec.seeded_event(2) != spec.event for spec in specs)
    assert issubclass(InvalidArgumentError, MedesError)
