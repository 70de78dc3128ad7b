"""The Activities call: begun and ended requests of a runtime over one stream, each answered as it is done.

What needs no waiting is answered before the next is read; the begin of a sandbox that sleeps is a task of its own, which
ends with the stream as a call ends with its caller.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from typing import Any

import grpc.aio

from medes.agent.agent import Agent
from medes.agent.api import handlers
from medes.errors import InternalError, InvalidArgumentError, MedesError
from medes.limits import ACTIVITIES_WAITING_MAX
from medes.rpc.convert import to_proto
from medes.rpc.gen import agent_pb2
from medes.rpc.services import Observer, refuse_malformed
from medes.rpc.status import ACTIVITIES_TAKEN, error_detail, status_of
from medes.types import Activity, Sandbox

log = logging.getLogger(__name__)

METHOD = "/medes.v1.AgentService/NotifyActivity"  # in the metrics: it does the same


class ActivityStream:
    """One caller's stream. Use from the agent's event loop."""

    def __init__(self, agent: Agent, context: Any, observer: Observer | None) -> None:
        self._agent = agent
        self._context = context
        self._observer = observer
        self._writing = asyncio.Lock()
        self._waiting: dict[int, asyncio.Task[None]] = {}

    async def serve(self) -> None:
        """Until the caller has no more to say."""
        # The caller may wait for this before it writes: then it hears a refusal instead of a broken pipe.
        await self._context.send_initial_metadata(((ACTIVITIES_TAKEN, "1"),))
        try:
            while True:
                request = await self._context.read()
                if request is grpc.aio.EOF:
                    break
                refuse_malformed(request, METHOD)
                await self._take(request)
            if self._waiting:
                await asyncio.wait(self._waiting.values())
        finally:
            for task in self._waiting.values():
                task.cancel()

    async def _take(self, request: Any) -> None:
        start_s = self._agent.clock.now_s()
        if request.cancelled:
            if task := self._waiting.get(request.number):
                task.cancel()
            return
        try:
            activity = Activity(request.activity)
        except ValueError:
            activity = Activity.UNSPECIFIED
        try:
            sandbox = handlers.notify_at_once(self._agent, request.sandbox_id, activity)
        except MedesError as error:
            await self._fail(request.number, error, start_s)
            return
        if sandbox is not None:
            await self._answer(request.number, sandbox, start_s)
            return
        if request.number in self._waiting:
            taken = InvalidArgumentError("another request has this number", object=f"number {request.number}")
            await self._fail(request.number, taken, start_s)
            return
        if len(self._waiting) >= ACTIVITIES_WAITING_MAX:
            await asyncio.wait(self._waiting.values(), return_when=asyncio.FIRST_COMPLETED)
        work = self._wait_for(request.number, request.sandbox_id, activity, start_s)
        task = self._waiting[request.number] = asyncio.create_task(
            work, name=f"activity {request.sandbox_id}"
        )
        task.add_done_callback(functools.partial(self._done, request.number))

    def _done(self, number: int, task: asyncio.Task[None]) -> None:
        if self._waiting.get(number) is task:
            del self._waiting[number]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.debug("an answer could not be sent: %s", error)  # the caller has gone

    async def _wait_for(self, number: int, sandbox_id: str, activity: Activity, start_s: float) -> None:
        try:
            sandbox = await handlers.notify_activity(self._agent, sandbox_id, activity)
        except MedesError as error:
            await self._fail(number, error, start_s)
        except Exception as error:
            log.exception("%s failed", METHOD)
            await self._fail(
                number, InternalError(f"{type(error).__name__}: {error}", object=METHOD), start_s
            )
        else:
            await self._answer(number, sandbox, start_s)

    async def _answer(self, number: int, sandbox: Sandbox, start_s: float) -> None:
        answer = agent_pb2.ActivityAnswer(number=number, sandbox=to_proto(agent_pb2.Sandbox, sandbox))
        await self._write(answer, "OK", start_s)

    async def _fail(self, number: int, error: MedesError, start_s: float) -> None:
        answer = agent_pb2.ActivityAnswer(number=number, error=error_detail(error))
        await self._write(answer, status_of(error).name, start_s)

    async def _write(self, answer: Any, code: str, start_s: float) -> None:
        if self._observer:
            self._observer(METHOD, code, self._agent.clock.now_s() - start_s)
        async with self._writing:
            await self._context.write(answer)
