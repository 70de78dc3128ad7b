"""Metrics of a controller."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from medes.types import SandboxState, Statistics


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
