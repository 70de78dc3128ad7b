"""TLS for gRPC: both sides show a certificate of the cluster's CA and verify the other's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medes.errors import InvalidArgumentError

if TYPE_CHECKING:  # settings have TLS files and need no gRPC
    import grpc

    from medes.certs.authority import Pem
    from medes.certs.identity import Identity


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files; all three, or none for what the cluster folder issues.

    `server_name` replaces the name that a client checks the server's certificate against.
    """

    certificate: str = ""
    private_key: str = ""
    ca: str = ""
    server_name: str = ""

    @property
    def enabled(self) -> bool:
        return bool(self.certificate or self.private_key or self.ca)

    def check(self) -> None:
        """Raises invalid_argument for a part of the three (files are read later)."""
        if self.enabled and not (self.certificate and self.private_key and self.ca):
            raise InvalidArgumentError(
                "needs certificate, private_key and ca: both sides are verified, always", object="tls"
            )


class Plaintext:
    """Instead of TLS files: no TLS at all, for a cluster that runs with `insecure_plaintext`."""


PLAINTEXT = Plaintext()


def server_credentials(identity: Identity) -> grpc.ServerCredentials:
    """Clients must show a certificate of the CA. Each handshake uses what the identity has then."""
    import grpc

    given = identity.generation

    def configuration(pem: Pem) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(pem.private_key, pem.certificate)], pem.ca)

    def newer() -> Any:  # a configuration, or None for no newer one: gRPC's types do not know that
        nonlocal given
        now = identity.generation
        if now == given:
            return None
        given = now
        return configuration(identity.pem)

    return grpc.dynamic_ssl_server_credentials(
        configuration(identity.pem), newer, require_client_authentication=True
    )


def channel_credentials(identity: Identity) -> grpc.ChannelCredentials:
    """What the identity has now; a channel is made anew for later certificates."""
    import grpc

    pem = identity.pem
    return grpc.ssl_channel_credentials(pem.ca, pem.private_key, pem.certificate)
