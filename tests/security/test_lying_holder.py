"""A node that serves made-up pages of a base that it holds: they fit every checksum of transport and slab, and are never
placed into another node's sandbox."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from medes import native
from medes.client import MedesClient
from medes.errors import LostError
from medes.types import SandboxState as S
from tests.support.cluster import AgentProcess, Cluster
from tests.support.counter_app import App
from tests.support.made_up_page import made_up

pytestmark = pytest.mark.live

PAGE = native.PAGE_BYTES
TABLE_AT = PAGE  # of a slab: the checksums of its pages, 8 bytes each


def other_page(page: bytes) -> bytes:
    """With a checksum of its own, which the holder tells instead."""
    return bytes(byte ^ 0x5A for byte in page[:64]) + page[64:]


@contextlib.contextmanager
def lying(holder: AgentProcess, lie: Callable[[bytes], bytes]) -> Iterator[None]:
    """Every page that the holder serves of its base is another one meanwhile: it maps the file, and its root may write."""
    (path,) = holder.shm.glob("base-*.slab")
    truth = path.read_bytes()
    count = native.Slab.open(str(path), ours=False).page_count
    pages_at = TABLE_AT + -(-count * 8 // PAGE) * PAGE
    lies = bytearray(truth)
    for n in range(count):
        at = slice(pages_at + n * PAGE, pages_at + (n + 1) * PAGE)
        lies[at] = lie(truth[at])
        lies[TABLE_AT + n * 8 : TABLE_AT + n * 8 + 8] = native.checksum64(bytes(lies[at])).to_bytes(
            8, "little"
        )
    overwrite(path, lies)
    try:
        yield
    finally:
        overwrite(path, truth)


def overwrite(path: Path, data: bytes | bytearray) -> None:
    descriptor = os.open(path, os.O_WRONLY)  # not truncated: it is mapped
    try:
        assert os.pwrite(descriptor, data, 0) == len(data)
    finally:
        os.close(descriptor)


def dedup(client: MedesClient, app: App, name: str) -> None:
    client.register("counter", pids=[app.pid], sandbox_id=name)
    client.dedup(name)


@pytest.mark.parametrize("lie", [made_up, other_page])
def test_pages_that_a_holder_made_up_are_not_placed(
    make_cluster: Callable[..., Cluster], make_app: Callable[..., App], lie: Callable[[bytes], bytes]
) -> None:
    holder, user = make_cluster(nodes=2).agents
    base, app = make_app(8, 1), make_app(8, 2)
    with holder.client() as one, user.client() as two:
        dedup(one, base, "base")
        dedup(two, app, "a")
        assert two.get("a").last_dedup.remote_pages_read > 0
        with lying(holder, lie):
            with pytest.raises(LostError, match="corrupt"):
                two.restore("a", eager=True)
            assert two.get("a").state is S.LOST
            with pytest.raises(
                TimeoutError
            ):  # it has no page that is not its own, and waits for the first that it wants
                app.ask(2.0)
        one.restore("base", eager=True)
        base.ask()
