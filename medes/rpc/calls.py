"""Calls as stubs make them: a channel whose unary calls and server streams raise catalogue errors, have a deadline,
and refuse a channel that is closed or was made before a fork.

A stub asks its channel for each of its calls once, so wrapping them costs a call one Python frame; gRPC's interceptors
make every call anew, and crash the interpreter on a channel that is closed.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import grpc.aio

from medes.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    MedesError,
    PermissionDeniedError,
    WrongStateError,
)
from medes.limits import GRPC_MESSAGE_BYTES_MAX
from medes.rpc.status import error_from_rpc, packed, require_size


def _forbidden(path: str) -> bool:
    """Whether a socket is there, or may be, that this user must not connect to."""
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode) and not os.access(path, os.W_OK)  # noqa: PTH116
    except PermissionError:
        return True
    except OSError:
        return False


class _Channel:
    """What both kinds share. `unreachable` is raised when nobody answers at `peer`."""

    def __init__(
        self,
        channel: Any,
        unreachable: type[MedesError],
        peer: str,
        timeout_s: float,
        request_bytes_max: int = GRPC_MESSAGE_BYTES_MAX,
    ) -> None:
        self._channel = channel
        self._unreachable = unreachable
        self.peer = peer
        self.timeout_s = timeout_s
        self._request_bytes_max = request_bytes_max
        self._process = os.getpid()
        self.closed = False

    def check(self) -> None:
        """Raises wrong_state where this channel can carry no call any more."""
        if self.closed:
            raise WrongStateError("this client is closed", object=self.peer, hint="make a new one")
        if os.getpid() != self._process:
            raise WrongStateError(
                "this client was made before a fork, which gRPC does not survive",
                object=self.peer,
                hint="make a client after the fork",
            )

    def require_size(self, size_bytes: int) -> None:
        """Raises limit_exceeded for a request that the server would not take."""
        require_size(size_bytes, self._request_bytes_max, self.peer)

    def packed(self, request: Any, serialize: Callable[[Any], bytes] | None) -> bytes:
        """A request as it is sent. Raises limit_exceeded."""
        return packed(request, serialize, self._request_bytes_max, self.peer)

    def error(self, error: grpc.RpcError, timeout_s: float | None = None) -> MedesError:
        """The catalogue error of a failed call. Raises wrong_state itself for one that a close() has ended."""
        if self.closed:
            self.check()
        found = error_from_rpc(error, unreachable=self._unreachable, peer=self.peer)
        path = self.peer.removeprefix("unix:")
        if type(found) is self._unreachable and path != self.peer and _forbidden(path):
            return PermissionDeniedError(
                "this user may not use the socket",
                object=self.peer,
                hint="run as the agent's user, or see listen_mode",
            )
        if type(found) is DeadlineExceededError and timeout_s is not None and not found.hint:
            return DeadlineExceededError(
                f"no answer within {timeout_s:g} s", object=found.object, hint="timeout_s gives it longer"
            )
        return found

    def refused(self, error: Exception, method: str) -> MedesError:
        """gRPC did not even begin the call: the channel was closed meanwhile, or the request cannot be sent."""
        self.check()
        return InvalidArgumentError(str(error), object=method)

    def stream_stream(self, method: str, **options: Any) -> Any:
        """As gRPC has it: nothing of the project's own calls it."""
        return self._channel.stream_stream(method, **options)

    @property
    def in_its_process(self) -> bool:
        """False in a forked child: what it inherited cannot be closed either."""
        return os.getpid() == self._process


class SyncChannel(_Channel):
    """Blocking and thread-safe."""

    def unary_unary(self, method: str, request_serializer: Any = None, **options: Any) -> Any:
        call = self._channel.unary_unary(method, **options)

        def invoke(request: Any, timeout: float | None = None) -> Any:
            timeout_s = self.timeout_s if timeout is None else timeout
            self.check()
            try:
                return call(self.packed(request, request_serializer), timeout=timeout_s)
            except grpc.RpcError as error:
                raise self.error(error, timeout_s) from None
            except ValueError as error:
                raise self.refused(error, method) from None

        return invoke

    def unary_stream(self, method: str, request_serializer: Any = None, **options: Any) -> Any:
        call = self._channel.unary_stream(method, **options)

        def invoke(request: Any, timeout: float | None = None) -> _SyncStream:
            self.check()
            try:
                return _SyncStream(call(self.packed(request, request_serializer), timeout=timeout), self)
            except ValueError as error:
                raise self.refused(error, method) from None

        return invoke

    def close(self) -> None:
        """Ends running calls. Idempotent."""
        self.closed = True
        if self.in_its_process:
            self._channel.close()

    def __enter__(self) -> SyncChannel:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _SyncStream:
    """An iterator over a server stream that raises catalogue errors; cancel() ends it."""

    def __init__(self, call: Any, channel: SyncChannel) -> None:
        self._call = call
        self._channel = channel

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return next(self._call)
        except grpc.RpcError as error:
            raise self._channel.error(error) from None

    def cancel(self) -> None:
        self._call.cancel()


class AioChannel(_Channel):
    """For asyncio: belongs to the event loop that it was made in."""

    def unary_unary(self, method: str, request_serializer: Any = None, **options: Any) -> Any:
        call = self._channel.unary_unary(method, **options)

        async def invoke(request: Any, timeout: float | None = None) -> Any:
            timeout_s = self.timeout_s if timeout is None else timeout
            self.check()
            try:
                return await call(self.packed(request, request_serializer), timeout=timeout_s)
            except grpc.aio.AioRpcError as error:
                raise self.error(error, timeout_s) from None
            except asyncio.CancelledError:
                # A channel that another task closes cancels the calls under way; nobody has cancelled this task.
                if self.closed and not _cancelled():
                    self.check()
                raise
            except (grpc.aio.UsageError, ValueError) as error:
                raise self.refused(error, method) from None

        return invoke

    def unary_stream(self, method: str, request_serializer: Any = None, **options: Any) -> Any:
        call = self._channel.unary_stream(method, **options)

        def invoke(request: Any, timeout: float | None = None) -> _AioStream:
            self.check()
            try:
                return _AioStream(call(self.packed(request, request_serializer), timeout=timeout), self)
            except (grpc.aio.UsageError, ValueError) as error:
                raise self.refused(error, method) from None

        return invoke

    async def close(self) -> None:
        """Ends running calls. Idempotent."""
        self.closed = True
        if self.in_its_process:
            await self._channel.close()

    async def __aenter__(self) -> AioChannel:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


def _cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class _AioStream:
    """The same for asyncio."""

    def __init__(self, call: Any, channel: AioChannel) -> None:
        self._call = call
        self._channel = channel

    async def __aiter__(self) -> AsyncIterator[Any]:
        try:
            async for response in self._call:
                yield response
        except grpc.aio.AioRpcError as error:
            raise self._channel.error(error) from None
        finally:
            self._call.cancel()

    def cancel(self) -> None:
        self._call.cancel()
