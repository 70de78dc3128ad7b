"""TLS for gRPC: certificate files → server and channel credentials. With a CA both sides are verified (mTLS)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medes.errors import InvalidArgumentError, IoError
from medes.limits import TLS_FILE_BYTES_MAX

if TYPE_CHECKING:  # settings have TLS files and need no gRPC
    import grpc


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


def _check_usable(tls: TlsFiles) -> None:
    """Raises invalid_argument for a key that is not the certificate's, or files that OpenSSL cannot use: gRPC would
    say no more than that it cannot listen, or cannot connect."""

    import ssl  # 6 ms that only TLS has to pay

    def no_password() -> str:
        raise InvalidArgumentError("the private key needs a password", object=tls.private_key)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if tls.certificate:
        try:
            context.load_cert_chain(tls.certificate, tls.private_key, no_password)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise InvalidArgumentError(
                    f"is not the key of the certificate {tls.certificate}", object=tls.private_key
                ) from None
            raise InvalidArgumentError(
                f"cannot be used with the key {tls.private_key}: {error.reason or error}",
                object=tls.certificate,
            ) from None
    if tls.ca:
        try:
            context.load_verify_locations(tls.ca)
        except ssl.SSLError as error:
            raise InvalidArgumentError(f"holds no CA: {error.reason or error}", object=tls.ca) from None


def server_credentials(tls: TlsFiles) -> grpc.ServerCredentials | None:
    """None without TLS. With `ca`, clients must show a certificate it signed. Reads files."""
    tls.check()
    if not tls.enabled:
        return None
    key, certificate, ca = _read_all(tls)
    if key is None or certificate is None:
        raise InvalidArgumentError("a server needs certificate and private_key", object="tls")
    _check_usable(tls)
    import grpc

    return grpc.ssl_server_credentials([(key, certificate)], ca, require_client_auth=ca is not None)


def channel_credentials(tls: TlsFiles) -> grpc.ChannelCredentials | None:
    """None without TLS. Reads files."""
    tls.check()
    if not tls.enabled:
        return None
    key, certificate, ca = _read_all(tls)
    _check_usable(tls)
    import grpc

    return grpc.ssl_channel_credentials(ca, key, certificate)


def _read_all(tls: TlsFiles) -> tuple[bytes | None, bytes | None, bytes | None]:
    """Private key, certificate, CA."""
    return (
        _read(tls.private_key, "private key"),
        _read(tls.certificate, "certificate"),
        _read(tls.ca, "CA certificate"),
    )
