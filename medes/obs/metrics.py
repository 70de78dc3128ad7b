"""Prometheus metrics: one registry per process, all names in this file, units last.

docs/metrics.md lists them and the Grafana dashboard uses them; a test keeps the three equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import TracebackType

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    start_http_server,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from medes.errors import IoError
from medes.rpc.address import parse_address
from medes.types import FunctionUsage, SandboxState, Statistics

# A second series for every counter, with the time it was made, tells nobody anything here.
disable_created_metrics()

_RPC_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_OP_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
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


class ControllerMetrics(Collector):
    """Gauges of the controller, read from its state at every scrape."""

    FIELDS: tuple[tuple[str, str, str], ...] = (
        ("medes_controller_nodes_alive", "nodes_alive", "Nodes whose lease is good."),
        ("medes_controller_bases", "bases", "Bases in the registry."),
        ("medes_controller_base_pages", "base_pages", "Pages of all bases in the registry."),
        ("medes_controller_registry_hashes", "registry_hashes", "Chunk hashes in the registry."),
        ("medes_controller_registry_bytes", "registry_bytes", "Memory of the registry."),
        ("medes_controller_lookup_us_p50", "lookup_us_p50", "Median time of recent lookups in the store."),
        (
            "medes_controller_lookup_us_p99",
            "lookup_us_p99",
            "99th percentile of recent lookups in the store.",
        ),
    )
    COUNTERS: tuple[tuple[str, str, str], ...] = (
        ("medes_controller_lookups", "lookups", "Fingerprint lookups."),
        ("medes_controller_lookup_pages", "lookup_pages", "Pages looked up."),
    )

    def __init__(
        self,
        registry: CollectorRegistry,
        statistics: Callable[[], Statistics],
        states: Callable[[], dict[SandboxState, int]],
        usage: Callable[[], dict[str, int]],
        withheld: Callable[[], int] = lambda: 0,
    ) -> None:
        self._statistics = statistics
        self._withheld = withheld
        self._states = states
        self._usage = usage
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        statistics = self._statistics()
        for name, field, text in self.FIELDS:
            yield GaugeMetricFamily(name, text, value=getattr(statistics, field))
        for name, field, text in self.COUNTERS:
            yield CounterMetricFamily(name, text, value=getattr(statistics, field))
        yield CounterMetricFamily(
            "medes_controller_withheld",
            "Answers and announced sandboxes left out: of domains that the calling node does not host.",
            value=self._withheld(),
        )
        sandboxes = GaugeMetricFamily(
            "medes_controller_sandboxes", "Sandboxes in the directory by state.", labels=["state"]
        )
        for state, count in self._states().items():
            sandboxes.add_metric([state.label], count)
        yield sandboxes
        memory = GaugeMetricFamily(
            "medes_controller_cluster_bytes", "Memory of all live nodes by kind.", labels=["kind"]
        )
        for kind, value in self._usage().items():
            memory.add_metric([kind], value)
        yield memory


class AgentMetrics:
    """Metrics of an agent; the agent sets gauges and observes ops as they end."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"medes_agent_{name}", text, labels, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"medes_agent_{name}", text, labels, registry=registry)

        def seconds(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(
                f"medes_agent_{name}_seconds", text, labels, registry=registry, buckets=_OP_BUCKETS_S
            )

        self.sandboxes = gauge("sandboxes", "Sandboxes by state.", "state")
        self.memory_bytes = gauge(
            "memory_bytes",
            "Memory by kind: warm, kept, base, previous (kept of warm sandboxes for their next dedup), index.",
            "kind",
        )
        self.node_saved_bytes = gauge(
            "node_saved_bytes", "What the node has more than without Medes: base pages and indexes count."
        )
        self.gross_saved_bytes = gauge(
            "node_gross_saved_bytes", "Warm less kept memory of the dedup'd sandboxes: no base page counts."
        )
        self.base_owner_bytes = gauge(
            "base_owner_bytes",
            "Base pages held here by who uses them: sandboxes (here), peers, nobody.",
            "owner",
        )
        self.saved = SavedMetrics(registry)
        self.bases = gauge("bases", "Bases held.")
        self.pins = gauge("pins", "Pins on bases held here.")
        self.remote_index_bytes = gauge(
            "remote_index_bytes", "Fingerprints kept of bases of other nodes: memory."
        )
        self.remote_index_bases = gauge(
            "remote_index_bases", "Bases of other nodes found without the controller."
        )
        self.lookups = counter(
            "lookups",
            "Look-ups of dedup ops by the last that was asked: own, remote (kept of other nodes) or controller.",
            "by",
        )
        self.controller_connected = gauge("controller_connected", "1 while the controller answers.")
        self.memory_pressure = gauge("memory_pressure_ratio", "Share of the memory limit in use.")
        self.dedups = counter("dedups", "Dedup ops by outcome: done, cancelled or an error code.", "outcome")
        self.dedup_seconds = seconds("dedup", "Dedup op from start to eviction.")
        self.dedup_stopped_seconds = seconds("dedup_stopped", "Time a sandbox stood still for its dedup op.")
        self.dedup_gross_saved_bytes = counter(
            "dedup_gross_saved_bytes",
            "Bytes freed by dedup ops, net of patches and tables, not of base pages.",
        )
        self.restores = counter(
            "restores", "Restore ops by outcome: done, demand or an error code.", "outcome"
        )
        self.restore_queue_seconds = seconds("restore_queue", "Wait for a restore's turn.")
        self.restore_ready_seconds = seconds("restore_ready", "Restore op until the sandbox runs.")
        self.restore_complete_seconds = seconds("restore_complete", "Restore op until the last page is in.")
        self.restore_stage_seconds = seconds(
            "restore_stage",
            "Restore op by stage: peers, settle, and thread time of fetch, apply (decode, verify) and place.",
            "stage",
        )
        self.faults_demand = counter("faults_demand", "Page faults served on demand.")
        self.pages_prefetched = counter("pages_prefetched", "Pages placed ahead of their fault.")
        self.refused_page_connections = gauge(
            "refused_page_connections",
            "Page connections refused by reason: certificate, token (unknown, ended), node (another's token).",
            "reason",
        )
        self.ended_page_connections = gauge(
            "ended_page_connections", "Page connections closed because their token had ended."
        )
        self.base_pages_read = counter(
            "base_pages_read", "Base pages read from peers by transport.", "transport"
        )
        self.base_sources = gauge(
            "base_sources",
            "Dedup'd sandboxes by how their base pages are reached: local (this node's own), tcp, tcp+tls, rdma.",
            "transport",
        )
        self.page_server_bytes = gauge("page_server_bytes", "Base page bytes sent to peers over TCP.")
        self.rdma_connections = gauge(
            "rdma_connections",
            "RDMA queue pairs: server (peers read here), client (this node reads).",
            "side",
        )
        self.fallback_reads = gauge(
            "fallback_reads", "Reads of the open readers that RDMA could not do and TCP did."
        )
        self.sandboxes_lost = counter("sandboxes_lost", "Sandboxes whose right bytes could not be produced.")
        self.sandboxes_waiting = gauge("sandboxes_waiting", "Sandboxes that could not be taken back yet.")
        self.restores_running = gauge("restores_running", "Restore ops that hold a slot.")
        self.tasks = gauge("tasks", "Ops and other work under way in the agent.")
        self.orphans = gauge("orphans", "Files of shm_dir that the agent does not know the use of.")
        self.take_backs_failed = counter(
            "take_backs_failed", "Attempts to take a sandbox back that left it waiting, by cause.", "code"
        )
        self.purges = counter("purges", "Sandboxes purged by reason.", "reason")
        self.activity_leases_expired = counter(
            "activity_leases_expired", "Sandboxes made idle because their runtime said nothing for too long."
        )


class SavedMetrics(Collector):
    """What is saved now by function and tenant; `rows` is asked at every scrape."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.rows: Callable[[], Iterable[FunctionUsage]] = lambda: ()
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        labels = ["function", "tenant"]
        saved = GaugeMetricFamily(
            "medes_agent_saved_bytes",
            "Memory that a function's sandboxes take less than without Medes, their share of base pages included.",
            labels=labels,
        )
        share = GaugeMetricFamily(
            "medes_agent_base_share_bytes",
            "Base pages that a function's sandboxes answer for, here and on other nodes.",
            labels=labels,
        )
        for row in self.rows():
            saved.add_metric([row.function, row.tenant], row.saved_bytes)
            share.add_metric([row.function, row.tenant], row.base_share_bytes)
        yield saved
        yield share


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
