"""Observability: structured logs, Prometheus metrics, readiness for service managers."""
