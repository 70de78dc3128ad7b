"""Fills the agent's Prometheus metrics: gauges at every scrape, ops as they end."""

from __future__ import annotations

from functools import partial

from prometheus_client import CollectorRegistry

from medes.agent.agent import Agent
from medes.agent.node.observer import Observer
from medes.agent.ops import page_sources
from medes.agent.peer_api.peer_handlers import PageAccessTable
from medes.obs.agent_metrics import AgentMetrics
from medes.types import DedupReport, RestoreReport, SandboxState

# Those without a histogram of their own.
RESTORE_STAGES = ("peers", "fetch", "apply", "place", "settle")


def _count(agent: Agent, state: SandboxState) -> float:
    return float(sum(e.state is state for e in list(agent.entries.values())))


def _memory(agent: Agent, field: str) -> float:
    return float(getattr(agent.accounting.usage(), field))


def _owner(agent: Agent, owner: str) -> float:
    return float(agent.accounting.shares_by_owner()[owner])


def _transport_connections(pages: PageAccessTable, name: str, field: str) -> float:
    return float(pages.transport_stats(name).get(field, 0))


class AgentObserver(Observer):
    """Told of every op; reads the agent when scraped."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._metrics = AgentMetrics(registry)

    def watch(self, agent: Agent) -> None:
        """Gauges read the agent from now on. The scrape runs on another thread: only sizes are read there."""
        metrics = self._metrics
        for state in SandboxState:
            metrics.sandboxes.labels(state.label).set_function(partial(_count, agent, state))
        for kind in ("warm", "kept", "present", "tick", "touched", "base"):
            metrics.memory_bytes.labels(kind).set_function(partial(_memory, agent, f"{kind}_bytes"))
        metrics.memory_bytes.labels("previous").set_function(lambda: float(agent.accounting.previous_bytes))
        metrics.memory_bytes.labels("index").set_function(lambda: float(agent.accounting.index_bytes))
        metrics.node_saved_bytes.set_function(partial(_memory, agent, "saved_bytes"))
        for over, field in (("10m", "recent_saved_bytes"), ("ever", "mean_saved_bytes")):
            metrics.node_mean_saved_bytes.labels(over).set_function(partial(_memory, agent, field))
        metrics.gross_saved_bytes.set_function(partial(_memory, agent, "gross_saved_bytes"))
        for owner in ("sandboxes", "peers", "nobody"):
            metrics.base_owner_bytes.labels(owner).set_function(partial(_owner, agent, owner))
        metrics.saved.rows = agent.accounting.function_usage
        metrics.bases.set_function(lambda: len(agent.bases.bases))
        metrics.pins.set_function(lambda: sum(agent.pins.count(b) for b in list(agent.bases.bases)))
        metrics.sandboxes_waiting.set_function(
            lambda: float(sum(e.pending is not None for e in list(agent.entries.values())))
        )
        metrics.ops_held_up.set_function(
            lambda: float(sum(e.lock.held_up is not None for e in list(agent.entries.values())))
        )
        metrics.restores_running.set_function(lambda: float(agent.admission.running))
        metrics.tasks.set_function(lambda: float(agent.tasks))
        metrics.orphans.set_function(lambda: float(len(agent.orphans)))
        metrics.remote_index_bytes.set_function(lambda: float(agent.remote_index.used_bytes))
        metrics.remote_pages_kept_bytes.set_function(lambda: float(agent.kept_pages.used_bytes))
        metrics.remote_pages_kept_used.set_function(lambda: float(agent.kept_pages.used_pages))
        metrics.remote_index_bases.set_function(lambda: float(len(agent.remote_index.base_ids)))
        metrics.controller_connected.set_function(lambda: float(agent.controller.connected))
        for transport in page_sources.carriers():
            sources = partial(page_sources.sandboxes_by_source, agent, transport)
            metrics.base_sources.labels(transport).set_function(sources)
        limit = agent.settings.memory_limit_bytes
        metrics.memory_pressure.set_function(lambda: agent.accounting.used_bytes() / limit if limit else 0.0)

    def watch_pages(self, agent: Agent, pages: PageAccessTable) -> None:
        """The same for what peers read here and what is read from peers."""
        metrics = self._metrics
        metrics.page_server_bytes.set_function(lambda: float(pages.stats()["bytes"]))
        for reason in ("certificate", "token", "node"):
            metrics.refused_page_connections.labels(reason).set_function(
                partial(_page_stat, pages, f"refused_{reason}s")
            )
        metrics.ended_page_connections.set_function(lambda: float(pages.stats()["ended_tokens"]))
        metrics.fallback_reads.set_function(lambda: float(agent.peers.fallback_reads()))
        for side in ("server", "client"):
            metrics.rdma_connections.labels(side).set_function(
                partial(_transport_connections, pages, "rdma", f"{side}_connections_open")
            )

    def dedup(self, outcome: str, report: DedupReport | None = None) -> None:
        self._metrics.dedups.labels(outcome).inc()
        if report is not None:
            self._metrics.dedup_seconds.observe(report.total_us / 1e6)
            self._metrics.dedup_stopped_seconds.observe(report.stopped_us / 1e6)
            self._metrics.dedup_gross_saved_bytes.inc(max(0, report.gross_saved_bytes or 0))

    def restore(self, outcome: str, report: RestoreReport | None = None) -> None:
        self._metrics.restores.labels(outcome).inc()
        if report is not None:
            self._metrics.restore_queue_seconds.observe(report.queue_us / 1e6)
            self._metrics.restore_ready_seconds.observe(report.ready_us / 1e6)
            self._metrics.restore_complete_seconds.observe(report.complete_us / 1e6)
            for stage in RESTORE_STAGES:
                if stage in report.stage_us:
                    self._metrics.restore_stage_seconds.labels(stage).observe(report.stage_us[stage] / 1e6)
            self._metrics.faults_demand.inc(report.faults_demand)
            self._metrics.faults_zero.inc(report.faults_zero)
            self._metrics.pages_prefetched.inc(report.pages_prefetched)

    def remote_pages(self, transport: str, pages: int) -> None:
        self._metrics.base_pages_read.labels(transport).inc(pages)

    def lookup(self, by: str) -> None:
        self._metrics.lookups.labels(by).inc()

    def reclaim(self, outcome: str, pages: int = 0) -> None:
        self._metrics.reclaims.labels(outcome).inc()
        self._metrics.pages_reclaimed.inc(pages)

    def touched(self, pages: int) -> None:
        self._metrics.pages_touched.inc(pages)

    def lost(self) -> None:
        self._metrics.sandboxes_lost.inc()

    def waits(self, code: str) -> None:
        self._metrics.take_backs_failed.labels(code).inc()

    def purged(self, reason: str) -> None:
        self._metrics.purges.labels(reason).inc()

    def activity_expired(self) -> None:
        self._metrics.activity_leases_expired.inc()


def _page_stat(pages: PageAccessTable, name: str) -> float:
    return float(pages.stats()[name])
