"""Addresses: `unix:/path` and `host:port` (IPv6 in brackets)."""

from __future__ import annotations

import errno
import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path

from medes.errors import AlreadyExistsError, InvalidArgumentError, IoError
from medes.types import NodeEndpoints

# sockaddr_un holds 108 bytes with the terminating zero.
UNIX_PATH_BYTES_MAX = 107


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed address: either `path` is set (unix socket) or `host` and `port`."""

    path: str = ""
    host: str = ""
    port: int = 0

    @property
    def is_unix(self) -> bool:
        return bool(self.path)

    @property
    def target(self) -> str:
        """The form gRPC takes."""
        if self.path:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        return self.target


def parse_address(text: str, *, allow_port_zero: bool = False) -> Address:
    """Parses `unix:/path` or `host:port`. Raises invalid_argument that says what is wrong.

    Port 0 (any free port) is only accepted where something listens: allow_port_zero.
    """
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        path = "/" + path.lstrip("/") if path.startswith("//") else path
        if not path.startswith("/"):
            raise InvalidArgumentError("a unix socket address needs an absolute path", object=text)
        if len(path.encode()) > UNIX_PATH_BYTES_MAX:
            raise InvalidArgumentError(
                f"a unix socket path has at most {UNIX_PATH_BYTES_MAX} bytes", object=text
            )
        return Address(path=path)
    host, colon, port_text = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise InvalidArgumentError("write IPv6 addresses in brackets", object=text, hint="[::1]:7070")
    if not colon or not host or not (port_text.isascii() and port_text.isdigit()):
        raise InvalidArgumentError("not an address", object=text or "(empty)", hint="host:port or unix:/path")
    port = int(port_text)
    if port > 65535 or (port == 0 and not allow_port_zero):
        raise InvalidArgumentError("port out of range", object=text)
    return Address(host=host, port=port)


def clear_stale_socket(path: Path) -> None:
    """Removes a unix socket nobody listens on any more (a killed daemon leaves one), else leaves it alone.

    Raises already_exists when something answers there, invalid_argument when the path is not a socket.
    """
    try:
        is_socket = path.is_socket()
    except OSError as error:
        raise IoError(str(error), object=str(path)) from error
    if not is_socket:
        if path.exists():
            raise InvalidArgumentError("exists and is not a socket", object=str(path))
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        result = probe.connect_ex(str(path))
    if result == errno.ECONNREFUSED:
        path.unlink(missing_ok=True)
    elif result != errno.ENOENT:
        raise AlreadyExistsError("another process listens on this socket", object=str(path))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address listened on. A name counts as what it resolves to here; one that
    does not resolve is taken for open."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]).is_loopback for entry in found)


def is_wildcard(host: str) -> bool:
    """Whether it stands for "all addresses of this machine": to listen on, and of no use to anybody else."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def local_addresses(endpoints: NodeEndpoints) -> list[str]:
    """Those of a node's addresses that lead nowhere, or to the caller itself, from another machine. Resolves no names:
    what `localhost` is called here says nothing of there, and this must not wait."""
    found = [a for a in (endpoints.grpc_address, endpoints.page_address) if a]
    return [a for a in found if _is_local(parse_address(a).host)]


def _is_local(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host.lower().rstrip(".") == "localhost"
    return address.is_loopback or address.is_unspecified


def is_remote(caller: str) -> bool:
    """Whether a caller (`ipv4:10.0.0.2:41000`, as gRPC names it) is on another machine, as far as that can be told."""
    kind, _, address = caller.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return False
    host = address.rpartition(":")[0].replace("%5B", "").replace("%5D", "").strip("[]")
    try:
        found = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(found, "ipv4_mapped", None)
    return not (mapped or found).is_loopback
