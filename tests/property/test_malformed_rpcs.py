"""Whatever bytes arrive at any controller RPC: a catalogue error that blames the caller, or a valid answer."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from medes.rpc.gen import controller_pb2 as pb
from medes.rpc.gen.controller_pb2_grpc import ControllerServiceStub, add_ControllerServiceServicer_to_server

from medes.config import ControllerSettings
from medes.controller.api.servicer import ControllerServicer
from medes.controller.registry.store import MemoryStore
from medes.controller.state import ControllerState
from medes.errors import InternalError, MedesError
from medes.rpc.channel import sync_channel
from tests.support.hostile import scramble
from tests.support.served import served

SERVICE = pb.DESCRIPTOR.services_by_name["ControllerService"]
METHODS = sorted(m.name for m in SERVICE.methods)


@pytest.fixture(scope="module")
def channel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[grpc.Channel]:
    from concurrent.futures import ThreadPoolExecutor

    folder: Path = tmp_path_factory.mktemp("rpc")
    state = ControllerState(ControllerSettings(), MemoryStore())
    with ThreadPoolExecutor(1) as executor:
        servicer = ControllerServicer(state, executor, lambda: 0.0)
        with (
            served(
                lambda s: add_ControllerServiceServicer_to_server(servicer, s), f"unix:{folder}/c.sock"
            ) as address,
            sync_channel(address) as opened,
        ):
            yield opened
            assert ControllerServiceStub(opened).GetStatistics(pb.GetStatisticsRequest()).bases == 0


def ask(channel: grpc.Channel, method: str, data: bytes) -> MedesError | None:
    try:
        channel.unary_unary(f"/medes.v1.ControllerService/{method}")(data)
    except MedesError as error:
        return error
    return None


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200))
def test_noise_is_never_our_fault(channel: grpc.Channel, method: str, data: bytes) -> None:
    assert not isinstance(ask(channel, method, data), InternalError)


@pytest.mark.parametrize("method", METHODS)
def test_hostile_fields_are_never_our_fault(channel: grpc.Channel, method: str) -> None:
    rng = random.Random(method)
    input_class = getattr(pb, SERVICE.methods_by_name[method].input_type.name)
    refused = 0
    for _ in range(60):
        message = input_class()
        scramble(message, rng)
        error = ask(channel, method, message.SerializeToString())
        assert not isinstance(error, InternalError), (message, error)
        refused += error is not None
    if method in ("JoinNode", "LookupFingerprints", "PublishBase", "AdviseBase", "RetireBase"):
        assert refused > 0
