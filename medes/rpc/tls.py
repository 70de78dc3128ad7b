"""TLS for gRPC: certificate files → server and channel credentials. With a CA both sides are verified (mTLS)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc

from medes.errors import InvalidArgumentError, IoError
from medes.limits import TLS_FILE_BYTES_MAX


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files. Empty paths: no TLS. `ca` alone suffices for a client that shows no certificate.

    `server_name` replaces the host name a client checks the server's certificate against.
    """

    certificate: str = ""
    private_key: str = ""
    ca: str = ""
    server_name: str = ""

    @property
    def enabled(self) -> bool:
        return bool(self.certificate or self.private_key or self.ca)

    def check(self) -> None:
        """Raises invalid_argument when the combination makes no sense (files are read later)."""
        if bool(self.certificate) != bool(self.private_key):
            raise InvalidArgumentError(
                "a certificate needs its private key and the other way round", object="tls"
            )


def _read(path: str, what: str) -> bytes | None:
    if not path:
        return None
    try:
        with Path(path).open("rb") as file:
            data = file.read(TLS_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise IoError(f"cannot read the {what}: {error.strerror}", object=path) from error
    if len(data) > TLS_FILE_BYTES_MAX or b"-----BEGIN" not in data:
        raise InvalidArgumentError(f"the {what} is not a PEM file", object=path)
    return data


def server_credentials(tls: TlsFiles) -> grpc.ServerCredentials | None:
    """None without TLS. With `ca`, clients must show a certificate it signed. Reads files."""
    tls.check()
    if not tls.enabled:
        return None
    key, certificate, ca = (
        _read(tls.private_key, "private key"),
        _read(tls.certificate, "certificate"),
        _read(tls.ca, "CA certificate"),
    )
    if key is None or certificate is None:
        raise InvalidArgumentError("a server needs certificate and private_key", object="tls")
    return grpc.ssl_server_credentials([(key, certificate)], ca, require_client_auth=ca is not None)


def channel_credentials(tls: TlsFiles) -> grpc.ChannelCredentials | None:
    """None without TLS. Reads files."""
    tls.check()
    if not tls.enabled:
        return None
    return grpc.ssl_channel_credentials(
        _read(tls.ca, "CA certificate"),
        _read(tls.private_key, "private key"),
        _read(tls.certificate, "certificate"),
    )
