"""Restores whose base pages lie on another node: read over TCP, waited for while that node restarts."""

from __future__ import annotations

import select
from collections.abc import Callable

import pytest

from medes import errors, native
from tests.support.live import Deduper, Program

pytestmark = pytest.mark.live
WAIT_S = 30.0
TOKEN = bytes(range(32))


def _serve(slab: native.Slab, port: int = 0) -> native.PageServer:
    server = native.PageServer("127.0.0.1", port)
    server.add_slab(slab, "tenant")
    server.grant(TOKEN, "tenant", "peer")
    return server


def _dedup_remote(
    deduper: Deduper,
    program: Program,
    server_address: str,
    wrap: Callable[[native.PageReader], native.PageReader] = lambda reader: reader,
) -> native.LiveSandbox:
    image, file, _, _ = deduper.encode([program.pid])
    slab = deduper.slab
    assert slab is not None
    bases = native.BaseSet()
    reader = wrap(native.tcp_reader(server_address, TOKEN))
    bases.add_remote(slab.base_id, slab.page_count, slab.ranges, slab.value_only, reader)
    return deduper.server.evict(image, file, bases)


def _slab_of(deduper: Deduper, program: Program) -> native.Slab:
    deduper.encode([program.pid])
    assert deduper.slab is not None
    return deduper.slab


def test_pages_come_over_the_network(deduper: Deduper) -> None:
    with Program() as program:
        server = _serve(_slab_of(deduper, program))
        live = _dedup_remote(deduper, program, server.address)
        assert program.ask("check") == "intact"
        assert live.wait_complete(WAIT_S)
        assert live.stats()["remote_bytes"] > 0
        server.close()


def test_damage_that_no_reader_saw_loses_the_sandbox_and_never_runs_it(deduper: Deduper) -> None:
    """A flipped bit behind the digests, as of RDMA: the page's own checksum is the last to notice."""
    with Program() as program:
        server = _serve(_slab_of(deduper, program))
        live = _dedup_remote(
            deduper, program, server.address, lambda r: native.failing_reader(r, corrupt=1.0)
        )
        live.restore(lazy=False)
        with pytest.raises(errors.LostError, match="corrupt"):
            live.wait_complete(WAIT_S)
        assert live.state == "lost"
        program.tell("check")
        assert program.process.stdout is not None
        assert not select.select([program.process.stdout], [], [], 1.0)[0], "it answered, from wrong memory"
        server.close()


def test_damage_that_a_reader_saw_is_read_again(deduper: Deduper) -> None:
    def retried(reader: native.PageReader) -> native.PageReader:
        damaged = native.failing_reader(reader, seed=3, corrupt=0.5, corrupt_found=True)
        return native.retry_reader(damaged, attempts=12)

    with Program() as program:
        server = _serve(_slab_of(deduper, program))
        live = _dedup_remote(deduper, program, server.address, retried)
        assert program.ask("check") == "intact"
        assert live.wait_complete(WAIT_S)
        server.close()


def test_a_node_that_restarts_is_waited_for(deduper: Deduper) -> None:
    with Program() as program:
        slab = _slab_of(deduper, program)
        server = _serve(slab)
        address = server.address
        live = _dedup_remote(deduper, program, address)
        server.close()
        program.tell("check")
        assert program.process.stdout is not None
        assert not select.select([program.process.stdout], [], [], 1.0)[0]
        assert live.state == "restoring"
        again = _serve(slab, int(address.rpartition(":")[2]))
        assert program.hear().endswith("intact")
        assert live.wait_complete(WAIT_S)
        again.close()


def test_another_sandbox_is_served_while_one_waits_for_its_peer(deduper: Deduper) -> None:
    with Program() as waiting, Program() as other:
        slab = _slab_of(deduper, waiting)
        server = _serve(slab)
        live = _dedup_remote(deduper, waiting, server.address)
        server.close()
        waiting.tell("check")
        local = deduper.dedup([other.pid])
        assert other.ask("check") == "intact"
        assert local.wait_complete(WAIT_S)
        assert live.state == "restoring"


class _Kept:
    """What a node keeps, and sandboxes of one program that restore through it."""

    def __init__(self, deduper: Deduper, program: Program, address: str) -> None:
        self.pages = native.KeptPages(64 << 20)
        self._deduper = deduper
        self._program = program
        self._address = address

    def dedup(
        self,
        wrap: Callable[[native.PageReader], native.PageReader] = lambda reader: reader,
        domain: str = "tenant",
    ) -> tuple[native.LiveSandbox, native.BaseSet]:
        image, file, _, _ = self._deduper.encode([self._program.pid])
        slab, bases = self._deduper.slab, native.BaseSet()
        assert slab is not None
        bases.keep_in(self.pages, domain)
        reader = wrap(native.tcp_reader(self._address, TOKEN))
        bases.add_remote(slab.base_id, slab.page_count, slab.ranges, slab.value_only, reader)
        return self._deduper.server.evict(image, file, bases), bases

    def restored(self, domain: str = "tenant") -> int:
        """Dedup, a request, the rest of the restore. The base pages that were read for it."""
        live, bases = self.dedup(domain=domain)
        assert self._program.ask("check") == "intact"
        assert live.wait_complete(WAIT_S)
        bases.keep_wanted()
        return bases.remote_pages_read


def test_what_a_restore_read_for_its_faults_is_not_read_again(deduper: Deduper) -> None:
    with Program() as program:
        server = _serve(_slab_of(deduper, program))
        kept = _Kept(deduper, program, server.address)
        first = kept.restored()
        assert 0 < kept.pages.bytes <= first * native.PAGE_BYTES
        assert kept.pages.used_pages == 0
        assert kept.restored() < first
        assert kept.pages.used_pages > 0
        server.close()


def test_another_domain_is_not_served_from_what_is_kept(deduper: Deduper) -> None:
    with Program() as program:
        server = _serve(_slab_of(deduper, program))
        kept = _Kept(deduper, program, server.address)
        kept.restored()
        kept.restored(domain="another")
        assert kept.pages.used_pages == 0
        server.close()


def test_what_is_kept_and_wrong_costs_a_read_and_no_sandbox(deduper: Deduper) -> None:
    """It came from a holder that made it up: the sandbox that read it is lost, the next one is not."""
    with Program() as victim, Program() as program:
        server = _serve(_slab_of(deduper, victim))
        kept = _Kept(deduper, victim, server.address)
        live, bases = kept.dedup(lambda reader: native.failing_reader(reader, corrupt=1.0))
        victim.tell("check")
        with pytest.raises(errors.LostError, match="corrupt"):
            live.wait_complete(WAIT_S)
        bases.keep_wanted()
        wrong = kept.pages.bytes
        assert wrong > 0
        kept._program = program
        kept.restored()
        assert kept.pages.used_pages > 0, "it was tried"
        server.close()
