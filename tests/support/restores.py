"""Restores without a pause beside what a test does to the daemons: nothing of that may be noticed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from medes.client import MedesClient
from medes.types import SandboxState
from tests.support.cluster import AgentProcess, wait_until
from tests.support.counter_app import App


class ContinuousRestores:
    """Dedups a sandbox, restores it (by turns eagerly, and lazily while it answers) and asks it, until the end of the
    `with` block, which raises what went wrong."""

    def __init__(self, agent: AgentProcess, sandbox_id: str, app: App) -> None:
        self.rounds = 0
        self.remote_pages = 0
        self.transports: set[str] = set()
        self._agent, self._id, self._app = agent, sandbox_id, app
        self._failure: BaseException | None = None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"restores of {sandbox_id}")

    def _work(self) -> None:
        try:
            with self._agent.client() as client:
                while not self._ending.is_set():
                    self._round(client)
                    self.rounds += 1
        except BaseException as error:
            self._failure = error

    def _round(self, client: MedesClient) -> None:
        client.dedup(self._id)
        report = client.restore(self._id, eager=self.rounds % 2 == 0).report
        assert report is not None and report.was_dedup
        self._app.ask()
        wait_until(lambda: client.get(self._id).state is SandboxState.WARM, "its last page")
        if self.rounds % 2 == 0:
            self.transports |= set(report.pages_by_transport)
            self.remote_pages += sum(report.pages_by_transport.values())

    def more(self, rounds: int = 4, timeout_s: float = 60.0) -> None:
        """Waits for some more rounds. Raises what went wrong in one."""
        until = self.rounds + rounds
        wait_until(lambda: self._failure or self.rounds >= until, f"{rounds} more restores", timeout_s)
        self.check()

    def check(self) -> None:
        if self._failure is not None:
            raise AssertionError(f"round {self.rounds}: {self._failure!r}") from self._failure

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join(60)
        if kind is None:
            self.check()


def register_two(holder: AgentProcess, user: AgentProcess, make_app: Callable[..., App]) -> App:
    """Sandbox a, the holder's, is dedup'd and so a base; sandbox b, the user's, is warm. The application in b."""
    first, app = make_app(seed=1), make_app(seed=2)
    with holder.client() as one, user.client() as two:
        one.register("f", pids=[first.pid], sandbox_id="a")
        one.dedup("a")
        two.register("f", pids=[app.pid], sandbox_id="b")
    return app
