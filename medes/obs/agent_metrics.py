"""Metrics of an agent."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from medes.types import FunctionUsage

_OP_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class _Make:
    """Metrics by their names in an agent's part of the registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"medes_agent_{name}", text, labels, registry=self._registry)

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"medes_agent_{name}", text, labels, registry=self._registry)

    def seconds(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(
            f"medes_agent_{name}_seconds", text, labels, registry=self._registry, buckets=_OP_BUCKETS_S
        )


class AgentMetrics:
    """Metrics of an agent; the agent sets gauges and observes ops as they end."""

    def __init__(self, registry: CollectorRegistry) -> None:
        make = _Make(registry)
        self.saved = SavedMetrics(registry)
        self._of_memory(make)
        self._of_dedups(make)
        self._of_restores(make)
        self._of_pages(make)
        self._of_sandboxes(make)

    def _of_memory(self, make: _Make) -> None:
        self.memory_bytes = make.gauge(
            "memory_bytes",
            "Memory by kind: warm, kept, present (of kept: in the sandboxes), tick and touched (of present: left as tick sets, back since the dedup op), base, previous (kept of warm sandboxes for their next dedup), index.",
            "kind",
        )
        self.node_saved_bytes = make.gauge(
            "node_saved_bytes", "What the node has more than without Medes: base pages and indexes count."
        )
        self.node_mean_saved_bytes = make.gauge(
            "node_mean_saved_bytes",
            "The same averaged over time: the last ten minutes (10m), or since the agent started (ever).",
            "over",
        )
        self.gross_saved_bytes = make.gauge(
            "node_gross_saved_bytes", "Warm less kept memory of the dedup'd sandboxes: no base page counts."
        )
        self.base_owner_bytes = make.gauge(
            "base_owner_bytes",
            "Base pages held here by who uses them: sandboxes (here), peers, nobody.",
            "owner",
        )
        self.bases = make.gauge("bases", "Bases held.")
        self.pins = make.gauge("pins", "Pins on bases held here.")
        self.remote_index_bytes = make.gauge(
            "remote_index_bytes", "Fingerprints kept of bases of other nodes: memory."
        )
        self.remote_pages_kept_bytes = make.gauge(
            "remote_pages_kept_bytes", "Base pages of other nodes kept for the next restores: memory."
        )
        self.remote_pages_kept_used = make.gauge(
            "remote_pages_kept_used",
            "Pages of sandboxes that were made of these without a read, since the agent started.",
        )
        self.remote_index_bases = make.gauge(
            "remote_index_bases", "Bases of other nodes found without the controller."
        )
        self.memory_pressure = make.gauge("memory_pressure_ratio", "Share of the memory limit in use.")

    def _of_dedups(self, make: _Make) -> None:
        self.lookups = make.counter(
            "lookups",
            "Look-ups of dedup ops by the last that was asked: own, remote (kept of other nodes) or controller.",
            "by",
        )
        self.dedups = make.counter(
            "dedups", "Dedup ops by outcome: done, cancelled or an error code.", "outcome"
        )
        self.dedup_seconds = make.seconds("dedup", "Dedup op from start to eviction.")
        self.dedup_stopped_seconds = make.seconds(
            "dedup_stopped", "Time a sandbox stood still for its dedup op."
        )
        self.dedup_gross_saved_bytes = make.counter(
            "dedup_gross_saved_bytes",
            "Bytes freed by dedup ops, net of patches and tables, not of base pages.",
        )
        self.ops_held_up = make.gauge(
            "ops_held_up", "Dedup ops that do not get on: a frozen cgroup holds the sandbox."
        )

    def _of_restores(self, make: _Make) -> None:
        self.restores = make.counter(
            "restores", "Restore ops by outcome: done, demand or an error code.", "outcome"
        )
        self.restore_queue_seconds = make.seconds("restore_queue", "Wait for a restore's turn.")
        self.restore_ready_seconds = make.seconds("restore_ready", "Restore op until the sandbox runs.")
        self.restore_complete_seconds = make.seconds(
            "restore_complete", "Restore op until the last page is in."
        )
        self.restore_stage_seconds = make.seconds(
            "restore_stage",
            "Restore op by stage: peers, settle, and thread time of fetch, apply (decode, verify) and place.",
            "stage",
        )
        self.faults_demand = make.counter("faults_demand", "Page faults served on demand.")
        self.faults_zero = make.counter(
            "faults_zero",
            "Page faults on new memory of dedup'd and restoring sandboxes, served with runs of zeros.",
        )
        self.reclaims = make.counter("reclaims", "Reclaim ops by how they ended.", "outcome")
        self.pages_reclaimed = make.counter(
            "pages_reclaimed",
            "Of the pages that dedup'd sandboxes touched, those that went again while they slept on.",
        )
        self.pages_touched = make.counter(
            "pages_touched", "Pages that dedup'd sandboxes touched, to sleep on with them."
        )
        self.pages_prefetched = make.counter("pages_prefetched", "Pages placed ahead of their fault.")
        self.restores_running = make.gauge("restores_running", "Restore ops that hold a slot.")

    def _of_pages(self, make: _Make) -> None:
        self.refused_page_connections = make.gauge(
            "refused_page_connections",
            "Page connections refused by reason: certificate, token (unknown, ended), node (another's token).",
            "reason",
        )
        self.ended_page_connections = make.gauge(
            "ended_page_connections", "Page connections closed because their token had ended."
        )
        self.base_pages_read = make.counter(
            "base_pages_read", "Base pages read from peers by transport.", "transport"
        )
        self.base_sources = make.gauge(
            "base_sources",
            "Dedup'd sandboxes by how their base pages are reached: local (this node's own), tcp, tcp+tls, rdma, or one that was installed.",
            "transport",
        )
        self.page_server_bytes = make.gauge("page_server_bytes", "Base page bytes sent to peers over TCP.")
        self.rdma_connections = make.gauge(
            "rdma_connections",
            "RDMA queue pairs: server (peers read here), client (this node reads).",
            "side",
        )
        self.fallback_reads = make.gauge(
            "fallback_reads", "Reads of the open readers that RDMA could not do and TCP did."
        )

    def _of_sandboxes(self, make: _Make) -> None:
        self.sandboxes = make.gauge("sandboxes", "Sandboxes by state.", "state")
        self.controller_connected = make.gauge("controller_connected", "1 while the controller answers.")
        self.sandboxes_lost = make.counter(
            "sandboxes_lost", "Sandboxes whose right bytes could not be produced."
        )
        self.sandboxes_waiting = make.gauge(
            "sandboxes_waiting", "Sandboxes that could not be taken back yet."
        )
        self.tasks = make.gauge("tasks", "Ops and other work under way in the agent.")
        self.orphans = make.gauge("orphans", "Files of shm_dir that the agent does not know the use of.")
        self.take_backs_failed = make.counter(
            "take_backs_failed", "Attempts to take a sandbox back that left it waiting, by cause.", "code"
        )
        self.purges = make.counter("purges", "Sandboxes purged by reason.", "reason")
        self.activity_leases_expired = make.counter(
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
        mean = GaugeMetricFamily(
            "medes_agent_mean_saved_bytes",
            "The same averaged over time, of the sandboxes that are here: the last ten minutes (10m), or all their time (ever).",
            labels=[*labels, "over"],
        )
        share = GaugeMetricFamily(
            "medes_agent_base_share_bytes",
            "Base pages that a function's sandboxes answer for, here and on other nodes.",
            labels=labels,
        )
        for row in self.rows():
            saved.add_metric([row.function, row.tenant], row.saved_bytes)
            share.add_metric([row.function, row.tenant], row.base_share_bytes)
            mean.add_metric([row.function, row.tenant, "10m"], row.recent_saved_bytes or 0)
            mean.add_metric([row.function, row.tenant, "ever"], row.mean_saved_bytes or 0)
        yield saved
        yield mean
        yield share
