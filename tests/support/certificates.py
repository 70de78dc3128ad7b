"""Certificates of clusters that exist for a test only."""

from __future__ import annotations

from pathlib import Path

from medes import native
from medes.certs import authority, files
from medes.certs.authority import Pem
from medes.certs.folder import cluster_folder, find_authority
from medes.certs.identity import Identity, IssuedIdentity
from medes.certs.parties import Party, Role
from medes.rpc.tls import TlsFiles

HOSTS = ("localhost", "127.0.0.1")


class Authority:
    """A CA whose certificates go into a folder."""

    def __init__(self, folder: Path, name: str = "") -> None:
        self._folder = folder
        self.authority = authority.Authority.create(name)

    def pem(self, name: str, role: Role = Role.NODE, *, days: float = 1.0, domains: str = "") -> Pem:
        party = Party(role, name, frozenset(domains.replace(" ", "").split(",")) if domains else None)
        return self.authority.issue(party, HOSTS, days=days)

    def issue(self, name: str, role: Role = Role.NODE, *, days: float = 1.0, domains: str = "") -> TlsFiles:
        """Files NAME.crt, NAME.key and ca.crt for 127.0.0.1, localhost and the party."""
        party = Party(role, name, frozenset(domains.replace(" ", "").split(",")) if domains else None)
        folder = self._folder / role.value
        written = files.issue_files(self.authority, party, HOSTS, days=days, folder=folder)
        return TlsFiles(str(written.certificate), str(written.private_key), str(written.ca))


def of_run(name: str, role: Role = Role.NODE) -> Identity:
    """Of the cluster whose daemons find their CA in the run's folder (conftest)."""
    return IssuedIdentity(find_authority(cluster_folder()), Party(role, name), HOSTS)


def shown_as(name: str) -> native.TlsIdentity:
    """A node of that cluster, for readers and page servers."""
    return shown(of_run(name).pem)


def shown(pem: Pem) -> native.TlsIdentity:
    """For page servers and readers."""
    return native.TlsIdentity(pem.certificate, pem.private_key, pem.ca)
