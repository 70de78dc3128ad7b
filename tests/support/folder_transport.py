"""A page transport as somebody else might write one: nodes that share a folder read copies of slabs there."""

from __future__ import annotations

import os
import secrets
import shutil
from functools import partial
from pathlib import Path
from typing import Self

from medes import native
from medes.config import AgentSettings
from medes.errors import InvalidArgumentError, NotFoundError, PeerUnreachableError, UnsupportedError
from medes.transport.transport import Exchange, Transport

VARIABLE = "SHARED_FOLDER"
HELLO = b"folder 1"
PART_BYTES = 1 << 20


class FolderTransport(Transport):
    """Copies in domain/base_id; a node with access has a link of an unguessable name to the domain's folder."""

    name = "folder"

    def __init__(self, shared: Path) -> None:
        self._own = shared / secrets.token_hex(8)
        self._own.mkdir()
        self._published: dict[int, Path] = {}
        self._domains: dict[str, Path] = {}
        self._links: dict[tuple[str, str], Path] = {}
        self._readers: list[native.PageReader] = []

    @classmethod
    def open(cls, settings: AgentSettings) -> Self:
        shared = Path(os.environ.get(VARIABLE, ""))
        if VARIABLE not in os.environ or not shared.is_dir():
            raise UnsupportedError("there is no shared folder", object=VARIABLE)
        return cls(shared)

    @property
    def where(self) -> str:
        return str(self._own.parent)

    def _folder(self, domain: str) -> Path:
        if domain not in self._domains:
            folder = self._domains[domain] = self._own / f"domain-{len(self._domains)}"
            folder.mkdir()
        return self._domains[domain]

    def publish(self, slab: native.Slab, domain: str) -> bool:
        path = self._folder(domain) / f"{slab.base_id:016x}"
        reader = native.local_reader([slab])
        size = slab.page_count * native.PAGE_BYTES
        with path.with_suffix(".new").open("wb") as file:
            for at in range(0, size, PART_BYTES):
                file.write(reader.read(slab.base_id, at, min(PART_BYTES, size - at)))
        reader.close()
        path.with_suffix(".new").rename(path)
        self._published[slab.base_id] = path
        return True

    def withdraw(self, base_id: int) -> None:
        if path := self._published.pop(base_id, None):
            path.unlink(missing_ok=True)

    def accept(self, node_id: str, domain: str, offer: bytes, now_s: float, valid_s: float) -> bytes | None:
        if offer != HELLO:
            raise InvalidArgumentError("not an offer of this transport", object=node_id)
        self.release(node_id, domain)
        link = self._links[node_id, domain] = self._own / secrets.token_hex(16)
        link.symlink_to(self._folder(domain))
        return str(link).encode()

    def release(self, node_id: str, domain: str) -> None:
        if link := self._links.pop((node_id, domain), None):
            link.unlink(missing_ok=True)

    async def attach(
        self, node_id: str, domain: str, behind: native.PageReader, exchange: Exchange
    ) -> native.PageReader | None:
        answer = await exchange(HELLO)
        if answer is None:
            return None
        reader = native.callback_reader(self.name, partial(_read, Path(answer.decode())))
        self._readers.append(reader)
        return native.fallback_reader(reader, behind)

    def close(self) -> None:
        for reader in self._readers:
            reader.close()
        shutil.rmtree(self._own, ignore_errors=True)


def _read(folder: Path, base_id: int, offset: int, length: int) -> bytes:
    path = folder / f"{base_id:016x}"
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError as error:
        if folder.exists():
            raise NotFoundError("no such base", object=path.name) from error
        raise PeerUnreachableError("access has ended", object=str(folder)) from error
    try:
        if offset + length > os.fstat(file).st_size:
            raise InvalidArgumentError("beyond the base's end", object=path.name)
        return os.pread(file, length, offset)
    finally:
        os.close(file)
