"""begin() and end() over one stream for asyncio callers; see medes.client.activity."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import Any

import grpc
import grpc.aio

from medes.client.messages import activity_request, answer_error, request
from medes.errors import AgentUnreachableError, DeadlineExceededError, MedesError, UnsupportedError
from medes.rpc.calls import AioChannel
from medes.rpc.gen import agent_pb2 as pb
from medes.rpc.status import ACTIVITIES_TAKEN
from medes.types import Activity


class _Stream:
    """One stream, until it breaks. Use from one event loop."""

    def __init__(self, call: Any, channel: AioChannel) -> None:
        self._call = call
        self._channel = channel
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._writing = asyncio.Lock()
        self.failure: MedesError | None = None
        self._reader = asyncio.get_running_loop().create_task(self._read(), name="medes activity")
        self._cancels: set[asyncio.Task[None]] = set()

    async def opened(self) -> None:
        """Until the agent has taken the stream. Raises what it refuses with: once something was written, gRPC may tell
        of that in place of the refusal."""
        try:
            taken = ACTIVITIES_TAKEN in [key for key, _ in await self._call.initial_metadata()]
        except grpc.aio.AioRpcError:
            taken = False
        if not taken:
            raise await self._status() or AgentUnreachableError(
                "the agent ended the stream", object=self._channel.peer
            )

    async def ask(self, message: Any, timeout_s: float) -> Any:
        if self.failure is not None:
            raise self.failure
        future = self._waiting[message.number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout_s):
                await self._write(message)
                return await future
        except TimeoutError:
            self._give_up(message.number)
            raise DeadlineExceededError(
                f"no answer within {timeout_s:g} s",
                object=self._channel.peer,
                hint="timeout_s gives it longer",
            ) from None
        except asyncio.CancelledError:
            self._give_up(message.number)
            raise

    def cancel(self) -> None:
        """Ends it; the reader ends with it."""
        self._call.cancel()

    async def _write(self, message: Any) -> None:
        try:
            async with self._writing:
                await self._call.write(message)
        except (grpc.RpcError, asyncio.InvalidStateError):
            pass  # the reader says what has happened

    def _give_up(self, number: int) -> None:
        if self._waiting.pop(number, None) is not None and self.failure is None:
            task = asyncio.get_running_loop().create_task(
                self._write(pb.ActivityRequest(number=number, cancelled=True))
            )
            self._cancels.add(task)
            task.add_done_callback(self._cancels.discard)

    async def _read(self) -> None:
        failure: MedesError = AgentUnreachableError("the agent ended the stream", object=self._channel.peer)
        try:
            await self._hand_out()
            failure = await self._status() or failure
        except MedesError as closed:
            failure = closed
        except asyncio.CancelledError:
            try:
                self._channel.check()
            except MedesError as closed:
                failure = closed
        finally:
            self.failure = failure
            waiting, self._waiting = self._waiting, {}
            for future in waiting.values():
                if not future.done():
                    future.set_exception(failure)

    async def _hand_out(self) -> None:
        try:
            while (answer := await self._call.read()) is not grpc.aio.EOF:
                future = self._waiting.pop(answer.number, None)
                if future is not None and not future.done():
                    future.set_result(answer)
        except grpc.aio.AioRpcError:
            return  # the call's status says more

    async def _status(self) -> MedesError | None:
        """What ended the call; None for a good end. Raises wrong_state on a closed channel."""
        code = await self._call.code()
        if code is grpc.StatusCode.OK:
            return None
        trailing, details = await self._call.trailing_metadata(), await self._call.details()
        if code is grpc.StatusCode.INTERNAL and not trailing:
            return (
                None  # gRPC's own word for a write to a connection that has gone; an agent's has its details
            )
        return self._channel.error(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details))


class AioActivityCalls:
    """What a client asks; the stream behind it comes and goes."""

    def __init__(self, stub: Any, channel: AioChannel) -> None:
        self._stub = stub
        self._channel = channel
        self._numbers = itertools.count(1)
        self._stream: _Stream | None = None
        self._opening = asyncio.Lock()
        self._one_by_one = False  # the agent does not have the call

    def __del__(self) -> None:
        # As for blocking callers; where the event loop has gone, so has the stream.
        if (stream := getattr(self, "_stream", None)) is not None:
            with contextlib.suppress(Exception):
                stream.cancel()

    async def _open(self) -> _Stream:
        async with self._opening:
            if self._stream is None or self._stream.failure is not None:
                stream = _Stream(self._stub.Activities(), self._channel)
                timeout_s = self._channel.timeout_s
                try:
                    async with asyncio.timeout(timeout_s):
                        await stream.opened()
                except TimeoutError:
                    stream.cancel()
                    raise DeadlineExceededError(
                        f"no answer within {timeout_s:g} s", object=self._channel.peer
                    ) from None
                except BaseException:
                    stream.cancel()
                    raise
                self._stream = stream
            return self._stream

    async def ask(self, sandbox_id: str, activity: Activity) -> Any:
        """The agent's answer, a Sandbox message. Raises as a call of its own would."""
        number: Any = int(activity)
        message = request(
            pb.ActivityRequest, number=next(self._numbers), sandbox_id=sandbox_id, activity=number
        )
        self._channel.check()
        self._channel.require_size(message.ByteSize())  # one that is refused would end the stream of all
        if not self._one_by_one:
            try:
                stream = await self._open()
            except UnsupportedError:
                self._one_by_one = True
            else:
                answer = await stream.ask(message, self._channel.timeout_s)
                if answer.HasField("error"):
                    raise answer_error(answer.error)
                return answer.sandbox
        return await self._stub.NotifyActivity(activity_request(sandbox_id, activity))
