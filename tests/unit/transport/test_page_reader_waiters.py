"""Several threads wait for replies on one connection: whoever receives another's reply must wake it."""

from __future__ import annotations

import os
import secrets
import threading
from pathlib import Path

import pytest

from medes import native

THREADS = 4
ROUNDS = 300


@pytest.mark.timeout(
    60
)  # a forgotten waiter sleeps for the whole ten seconds of its read's timeout, each time
def test_no_waiter_is_forgotten(tmp_path: Path) -> None:
    image = native.MemoryImage.from_buffer(os.urandom(native.PAGE_BYTES * THREADS))
    slab = native.Slab.create(str(tmp_path / "base.slab"), 77, image)
    server = native.PageServer("127.0.0.1", 0)
    token = secrets.token_bytes(32)
    server.add_slab(slab, "d")
    server.grant(token, "d", "n")
    reader = native.tcp_reader(server.address, token)
    together = threading.Barrier(THREADS)
    wrong: list[int] = []

    def read(page: int) -> None:
        for _ in range(ROUNDS):
            together.wait()
            got = reader.read(77, page * native.PAGE_BYTES, native.PAGE_BYTES)
            if got != image.page(page):
                wrong.append(page)

    try:
        threads = [threading.Thread(target=read, args=(n,)) for n in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert reader.stats()["reads"] >= THREADS * ROUNDS
    finally:
        reader.close()
        server.close()
