"""Fixtures that all tests may use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from medes import native
from medes.certs.folder import VARIABLE
from tests.support import seed
from tests.support.cluster import Cluster
from tests.support.counter_app import App

# No test asserts a time: neither that of an example nor that of drawing it, which a busy machine stretches.
hypothesis.settings.register_profile(
    "medes", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("medes")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Hypothesis draws from the run's seed too, unless it is given one of its own."""
    if config.getoption("hypothesis_seed", None) is None:
        config.option.hypothesis_seed = seed.SEED


@pytest.fixture(scope="session", autouse=True)
def cluster_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One CA for all daemons and clients of a test run, in its own folder."""
    folder = tmp_path_factory.mktemp("cluster")
    folder.chmod(0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(folder))
        yield folder


def pytest_report_header() -> str:
    return seed.TEXT


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Once more after a failure: the header is not shown with -q, and is far up otherwise."""
    if terminalreporter.stats.get("failed") or terminalreporter.stats.get("error"):
        terminalreporter.write_line(seed.TEXT)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips live tests, with what is missing, where the live driver cannot run."""
    missing = native.probe_live()
    if not missing:
        return
    reason = "the live driver cannot run here: " + "; ".join(f"{k} ({v})" for k, v in missing.items())
    for item in items:
        if "live" in item.keywords:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def make_cluster(tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    """Starts clusters (see tests.support.cluster); all end with the test."""
    made: list[Cluster] = []

    def make(**options: object) -> Cluster:
        cluster = Cluster(tmp_path, **options)  # type: ignore[arg-type]
        made.append(cluster)
        return cluster.__enter__()

    yield make
    for cluster in made:
        cluster.__exit__()


@pytest.fixture
def make_app() -> Iterator[Callable[..., App]]:
    """Starts sandboxes (see tests.support.counter_app); all end with the test."""
    made: list[App] = []

    def make(megabytes: int = 8, seed: int = 1) -> App:
        app = App(megabytes, seed)
        made.append(app)
        return app

    yield make
    for app in made:
        app.close()
