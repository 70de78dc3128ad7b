"""The native core's error codes and the Python catalogue name the same failures."""

from __future__ import annotations

import grpc
import pytest

from medes import errors, native


def test_every_native_code_has_an_exception() -> None:
    missing = [code for code in native.error_codes() if code != "ok" and code not in errors.BY_CODE]
    assert missing == []


def test_codes_exit_codes_and_statuses() -> None:
    exit_codes = [cls.exit_code for cls in errors.BY_CODE.values()]
    assert len(exit_codes) == len(set(exit_codes))
    assert all(2 <= code < 126 for code in exit_codes)
    assert all(hasattr(grpc.StatusCode, cls.grpc_status) for cls in errors.BY_CODE.values())
    assert all(cls.__doc__ for cls in errors.BY_CODE.values())


def test_unknown_code_is_an_internal_error() -> None:
    assert type(errors.from_code("no-such-code", "x")) is errors.InternalError


def test_message_says_what_where_and_what_to_do() -> None:
    error = errors.from_code("traced", "another tracer holds it", "pid 7", "detach gdb")
    assert isinstance(error, errors.TracedError)
    assert str(error) == "pid 7: another tracer holds it (detach gdb)"


@pytest.mark.parametrize(
    "code",
    [
        "agent_unreachable",
        "peer_unreachable",
        "controller_unreachable",
        "host_unreachable",
        "store_unreachable",
        "busy",
        "store_full",
        "cancelled",
    ],
)
def test_transient_errors_are_marked(code: str) -> None:
    assert errors.BY_CODE[code].transient


def test_both_sides_agree_on_what_passes() -> None:
    disagree = [code for code in native.error_codes() if native.error_passes(code) != errors.passes(code)]
    assert disagree == []
    assert errors.passes("busy") and not errors.passes("corrupt") and not errors.passes("no such code")
