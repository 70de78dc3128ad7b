"""The instance process, alone: answers, errors, hooks, frames, and that nothing is left behind."""

import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from medes.errors import (
    DeadlineExceededError,
    FunctionError,
    InvalidArgumentError,
    LimitExceededError,
    MedesError,
    UnsupportedError,
)
from medes.runtimes.contracts.contract import HandlerError, InstanceFailedError
from medes.runtimes.host.standalone import StandaloneInstance, running_instances
from medes.runtimes.instance import hooks, wire
from medes.runtimes.instance.checked_state import CheckedState, StateDamagedError
from medes.runtimes.manifest import FunctionSpec, load

CODE = """
import os, sys, time
from snapshot_restore_py import register_after_restore, register_before_snapshot
seen = []
register_after_restore(seen.append, "after 1")
register_after_restore(seen.append, "after 2")
register_before_snapshot(seen.append, "before 1")
register_before_snapshot(seen.append, "before 2")

@register_after_restore
def sometimes():
    if "fail" in seen:
        raise OSError("no route")

def handler(event, context):
    do = event.get("do")
    if do == "raise":
        raise KeyError("gone")
    if do == "exit":
        sys.exit(3)
    if do == "die":
        os._exit(9)
    if do == "sleep":
        time.sleep(event["s"])
    if do == "unserialisable":
        return {1, 2}
    if do == "large":
        return "x" * (13 << 20)
    if do == "deep":
        deep = []
        for _ in range(100_000):
            deep = [deep]
        return deep
    if do == "fork":
        pid = os.fork()
        if pid == 0:
            time.sleep(600)
        return pid
    if do == "context":
        return [context.function_name, context.memory_limit_in_mb, context.aws_request_id,
                context.get_remaining_time_in_millis(), context.invoked_function_arn]
    if do == "modules":
        return sorted(sys.modules)
    if do == "fail":
        seen.append("fail")
    if do == "hash":
        return [hash("medes"), os.environ.get("PYTHONHASHSEED"), os.getsid(0) == os.getpid()]
    return seen
"""


@pytest.fixture
def spec(tmp_path: Path) -> FunctionSpec:
    (tmp_path / "code.py").write_text(CODE)
    (tmp_path / "function.toml").write_text(
        'name = "probe"\nhandler = "code:handler"\nevent = {}\nidempotent = true\nmemory_mb = 77\n'
    )
    return load(tmp_path)


@pytest.fixture
def instance(spec: FunctionSpec, tmp_path: Path):
    instance = StandaloneInstance(spec, "probe-0", tmp_path / "log")
    try:
        instance.load()
        yield instance
    finally:
        instance.close()


def test_a_handlers_exception_leaves_the_instance_usable(instance: StandaloneInstance) -> None:
    with pytest.raises(HandlerError) as caught:
        instance.invoke({"do": "raise"})
    assert caught.value.type == "KeyError"
    assert any("in handler" in line for line in caught.value.traceback)
    with pytest.raises(HandlerError, match="SystemExit: 3"):
        instance.invoke({"do": "exit"})
    assert instance.invoke({}) == []


@pytest.mark.parametrize("do", ["unserialisable", "large", "deep"])
def test_an_answer_that_cannot_be_sent_is_an_error(instance: StandaloneInstance, do: str) -> None:
    with pytest.raises(HandlerError, match="MarshalError"):
        instance.invoke({"do": do})
    assert instance.invoke({}) == []


def test_an_event_that_cannot_be_sent_leaves_the_instance_usable(instance: StandaloneInstance) -> None:
    with pytest.raises(LimitExceededError, match="too large"):
        instance.invoke({"text": "x" * (13 << 20)})
    with pytest.raises(InvalidArgumentError, match="not JSON"):
        instance.invoke({"set": {1}})
    assert instance.invoke({}) == []


def test_another_contract_needs_the_host(spec: FunctionSpec) -> None:
    with pytest.raises(UnsupportedError, match="only the function host"):
        StandaloneInstance(replace(spec, contract="other"), "probe-0")


def test_the_context_is_lambdas(instance: StandaloneInstance) -> None:
    name, memory, request_id, remaining, arn = instance.invoke({"do": "context"}, timeout_s=20)
    assert (name, memory, request_id) == ("probe", 77, "probe-0-1")
    assert 0 < remaining <= 20_000
    assert arn == "arn:medes:function:default:probe"


def test_hooks_run_in_their_order_and_report_errors(instance: StandaloneInstance) -> None:
    assert instance.run_hooks("before_snapshot") == 2
    assert instance.run_hooks("after_restore") == 3
    assert instance.invoke({}) == ["before 2", "before 1", "after 1", "after 2"]
    instance.invoke({"do": "fail"})
    with pytest.raises(HandlerError, match="OSError: no route"):
        instance.run_hooks("after_restore")
    assert instance.invoke({})[-1] == "after 2"


def test_the_sandbox_imports_nothing_of_the_host(instance: StandaloneInstance) -> None:
    modules = instance.invoke({"do": "modules"})
    foreign = {"grpc", "medes.native", "asyncio", "ctypes", "subprocess", "google", "click", "rich"}
    assert not foreign & set(modules)
    assert {name for name in modules if name.startswith("medes")} == {
        "medes", "medes.runtimes", "medes.runtimes.instance",
        "medes.runtimes.instance.hooks", "medes.runtimes.instance.wire",
    }  # fmt: skip


def test_hash_randomisation_is_on(spec: FunctionSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    with running_instances(spec, 2, warm_requests=0) as (one, two):
        first, second = one.invoke({"do": "hash"}), two.invoke({"do": "hash"})
    assert first[1:] == second[1:] == [None, True]
    assert first[0] != second[0]


def test_an_instance_that_dies_is_reported(instance: StandaloneInstance) -> None:
    with pytest.raises(FunctionError, match="ended"):
        instance.invoke({"do": "die"})


def test_a_late_answer_is_a_deadline(instance: StandaloneInstance) -> None:
    with pytest.raises(DeadlineExceededError):
        instance.invoke({"do": "sleep", "s": 5}, timeout_s=0.1)


def test_close_ends_the_whole_tree(spec: FunctionSpec, tmp_path: Path) -> None:
    instance = StandaloneInstance(spec, "probe-1")
    instance.load()
    child = instance.invoke({"do": "fork"})
    os.kill(child, 0)
    instance.close()
    instance.close()
    assert not Path(f"/proc/{instance.pid}").exists()
    # SIGKILL has been sent; the kernel may take a moment to end the process.
    for _ in range(500):
        if _ended(child):
            break
        time.sleep(0.01)
    assert _ended(child)


def _ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_an_instance_ends_when_its_host_does(spec: FunctionSpec) -> None:
    program = (
        "import os, sys; from medes.runtimes.manifest import load; from medes.runtimes.host.standalone import StandaloneInstance\n"
        f"i = StandaloneInstance(load({str(spec.folder)!r}), 'probe-2'); i.load()\n"
        "print(i.pid, flush=True); os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    pid = int(done.stdout)
    pidfd = None
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        import select

        assert select.select([pidfd], [], [], 20)[0], "the instance outlived its host"
    finally:
        os.close(pidfd)


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("import nothing_of_this_name\n", "ModuleNotFoundError"),
        ("handler = 7\n", "not a callable"),
        ("def other(event, context): pass\n", "AttributeError"),
        ("import os; print('last words', flush=True); os._exit(1)\n", "last words"),
        ("def handler(:\n", "SyntaxError"),
    ],
)
def test_a_function_that_does_not_load(spec: FunctionSpec, tmp_path: Path, code: str, complaint: str) -> None:
    (spec.folder / "code.py").write_text(code)
    instance = StandaloneInstance(spec, "probe-3", tmp_path / "log")
    try:
        with pytest.raises(FunctionError, match=complaint):
            instance.load()
    finally:
        instance.close()


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"\xff\xff\xff\xff", "out of bounds"),
        (b"\0\0\0\0", "out of bounds"),
        (b"\0\0", "inside a frame header"),
        (b"\0\0\0\x08{}", "2 of 8 bytes"),
        (b"\0\0\0\x03abc", "not JSON"),
        (b"\0\0\0\x02[]", "not an object"),
        (b"\0\0\0\x02\xff\xff", "not JSON"),
    ],
)
def test_malformed_frames_are_refused(data: bytes, complaint: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(data)
        ours.close()
        with pytest.raises(wire.FrameError, match=complaint):
            wire.receive(theirs)


def test_frames_round_trip() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for message in ({}, {"text": "ä" * 5000, "deep": [[{"a": None}]]}):
            wire.send(ours, message)
            assert wire.receive(theirs) == message
        ours.close()
        assert wire.receive(theirs) is None


def test_before_hooks_run_backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "_before", [])
    seen: list[str] = []
    hooks.register_before_snapshot(seen.append, "first")
    assert hooks.register_before_snapshot(seen.append, "second") == seen.append
    assert hooks.run("before_snapshot") == 2
    assert seen == ["second", "first"]


@pytest.mark.parametrize("damage", ["unique", "line", "event", "cached", "count"])
def test_checked_state_notices_one_wrong_byte(damage: str) -> None:
    state = CheckedState("test", buffer_bytes=1 << 14)
    answers = [state.finish(state.begin({"n": n}), {"n": n}) for n in (1, 2, 1)]
    assert answers[0] == answers[2]
    if damage == "unique":
        state._unique[70] ^= 1
    elif damage == "line":
        state._lines[5] = state._lines[5][:-1] + "x"
    elif damage == "event":
        state._events[1] = state._events[0]
    elif damage == "cached":
        next(iter(state._cache.values()))[0]["n"] = 3
    else:
        state.requests = 1
    with pytest.raises(StateDamagedError):
        state.begin({"n": 1})


def test_checked_state_refuses_another_answer_to_the_same_event() -> None:
    state = CheckedState("test", buffer_bytes=0)
    state.finish(state.begin("event"), 1)
    with pytest.raises(StateDamagedError, match="was 1 and is now 2"):
        state.finish(state.begin("event"), 2)


def test_checked_states_of_two_instances_differ() -> None:
    one, two = (CheckedState("test", 1024) for _ in range(2))
    assert one.finish(one.begin(1), 1)["state_digest"] != two.finish(two.begin(1), 1)["state_digest"]


@pytest.mark.parametrize(
    "error",
    [
        HandlerError("f", {"type": "KeyError", "message": "no", "traceback": ["one"]}),
        InstanceFailedError("it broke", object="f", hint="look", begun=True),
    ],
)
def test_an_error_that_is_kept_says_the_same(error: MedesError) -> None:
    kept = error.alone()
    assert kept is not error and type(kept) is type(error)
    assert (vars(kept), str(kept)) == (vars(error), str(error))
