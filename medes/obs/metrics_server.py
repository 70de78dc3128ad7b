"""Serving a process's metrics."""

from __future__ import annotations

from types import TracebackType

from prometheus_client import CollectorRegistry, start_http_server

from medes.errors import IoError
from medes.rpc.address import parse_address


class MetricsServer:
    """The HTTP endpoint `/metrics`, on a thread of its own. close() is idempotent."""

    def __init__(self, address: str, registry: CollectorRegistry) -> None:
        """Listens at host:port (port 0: any). Raises io when it cannot."""
        parsed = parse_address(address, allow_port_zero=True)
        try:
            self._server, self._thread = start_http_server(parsed.port, parsed.host, registry)
        except OSError as error:
            raise IoError(f"cannot serve metrics there: {error.strerror}", object=address) from error
        self.address = f"{parsed.host}:{self._server.server_port}"
        self._closed = False

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._server.shutdown()
            self._server.server_close()
            self._thread.join(5.0)

    def __enter__(self) -> MetricsServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
