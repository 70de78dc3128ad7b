"""Metrics of a process's gRPC server. docs/metrics.md lists all metrics and the Grafana dashboard uses them; a test keeps
names here, there and in the dashboard equal."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

# For all counters of a process, whose first are these: a second series with the time it was made tells nobody anything.
disable_created_metrics()

_RPC_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
# A method name comes from the wire: only names of our own services become label values.
SERIES_KNOWN_MAX = 1000
_SERVICES = ("/medes.v1.", "/grpc.health.", "/grpc.reflection.")


class RpcMetrics:
    """Calls and latencies of a process's gRPC server; `observe` is the RpcServer's observer."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._calls = Counter(
            "medes_rpc_calls",
            "Finished gRPC calls by method and status.",
            ["method", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "medes_rpc_seconds", "Time of a gRPC call.", ["method"], registry=registry, buckets=_RPC_BUCKETS_S
        )

        # Finding a series by its labels takes longer than adding to it. Methods are those that are served.
        self._known: dict[tuple[str, str], tuple[Counter, Histogram]] = {}

        self._expiry = Gauge(
            "medes_certificate_expiry_timestamp_seconds",
            "When the TLS certificate in use ends, in seconds since 1970; 0 without one.",
            registry=registry,
        )

    def watch_certificate(self, expires_s: Callable[[], float]) -> None:
        """`expires_s` is asked at every scrape."""
        self._expiry.set_function(expires_s)

    def observe(self, method: str, status: str, seconds: float) -> None:
        known = self._known.get((method, status))
        if known is None:
            name = method.rsplit("/", 1)[-1] if method.startswith(_SERVICES) else "other"
            known = self._calls.labels(name, status), self._seconds.labels(name)
            if len(self._known) < SERIES_KNOWN_MAX:
                self._known[method, status] = known
        known[0].inc()
        known[1].observe(seconds)
