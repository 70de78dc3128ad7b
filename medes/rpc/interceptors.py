"""gRPC interceptors: catalogue errors in both directions, a deadline on every call, an observer for metrics."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import grpc
import grpc.aio

from medes.errors import InternalError, InvalidArgumentError, MedesError, PeerUnreachableError
from medes.limits import RPC_TIMEOUT_S
from medes.rpc.status import error_from_rpc, error_metadata, status_of

log = logging.getLogger(__name__)

# (method "/package.Service/Method", status name, seconds)
Observer = Callable[[str, str, float], None]


class _Malformed:
    """Stands for a request that is no valid message, until the handler's turn to refuse it."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


def _tolerant(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """gRPC answers a request it cannot parse with INTERNAL; the caller's fault deserves invalid_argument."""
    if deserialize is None:
        return None

    def call(data: bytes) -> Any:
        try:
            return deserialize(data)
        except Exception as error:  # whatever the parser raises, the input is what is wrong
            return _Malformed(str(error) or type(error).__name__)

    return call


class ErrorServerInterceptor(grpc.aio.ServerInterceptor):
    """Turns exceptions of the handlers into status + `medes-error-bin`; unknown ones become internal, logged."""

    def __init__(self, observer: Observer | None = None) -> None:
        self._observer = observer

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_streaming:
            return handler
        method = handler_call_details.method
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._stream(method, handler.unary_stream),
                _tolerant(handler.request_deserializer),
                handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            self._unary(method, handler.unary_unary),
            _tolerant(handler.request_deserializer),
            handler.response_serializer,
        )

    def _unary(self, method: str, behaviour: Callable[[Any, Any], Awaitable[Any]]) -> Any:
        async def call(request: Any, context: Any) -> Any:
            start_s = time.monotonic()
            try:
                _refuse_malformed(request, method)
                response = await behaviour(request, context)
            except (grpc.aio.AbortError, grpc.aio.UsageError, asyncio.CancelledError):
                raise
            except Exception as error:
                await self._fail(method, error, context, start_s)
                raise  # _fail aborts; this is never reached
            self._observe(method, "OK", start_s)
            return response

        return call

    def _stream(self, method: str, behaviour: Callable[[Any, Any], AsyncIterator[Any]]) -> Any:
        async def call(request: Any, context: Any) -> AsyncIterator[Any]:
            start_s = time.monotonic()
            try:
                _refuse_malformed(request, method)
                async for response in behaviour(request, context):
                    yield response
            except (grpc.aio.AbortError, grpc.aio.UsageError, asyncio.CancelledError, GeneratorExit):
                raise
            except Exception as error:
                await self._fail(method, error, context, start_s)
            self._observe(method, "OK", start_s)

        return call

    async def _fail(self, method: str, error: Exception, context: Any, start_s: float) -> None:
        if not isinstance(error, MedesError):
            log.exception("%s failed", method, exc_info=error)
            error = InternalError(f"{type(error).__name__}: {error}", object=method)
        status = status_of(error)
        self._observe(method, status.name, start_s)
        await context.abort(status, str(error)[:300], error_metadata(error))

    def _observe(self, method: str, code: str, start_s: float) -> None:
        if self._observer:
            self._observer(method, code, time.monotonic() - start_s)


def _refuse_malformed(request: Any, method: str) -> None:
    if isinstance(request, _Malformed):
        raise InvalidArgumentError(f"malformed request: {request.reason}", object=method)


class _ErrorMapper:
    """What the client interceptors share."""

    def __init__(self, unreachable: type[MedesError], peer: str, timeout_s: float) -> None:
        self._unreachable = unreachable
        self._peer = peer
        self._timeout_s = timeout_s

    def _map(self, error: grpc.RpcError) -> MedesError:
        return error_from_rpc(error, unreachable=self._unreachable, peer=self._peer)

    def _bounded(self, details: Any) -> Any:
        """Every unary call has a deadline, the default one if the caller names none."""
        return details._replace(timeout=self._timeout_s) if details.timeout is None else details


class AioUnaryErrors(_ErrorMapper, grpc.aio.UnaryUnaryClientInterceptor):
    """asyncio, unary calls: raises catalogue errors."""

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        try:
            call = await continuation(self._bounded(client_call_details), request)
            await call
        except grpc.aio.AioRpcError as error:
            raise self._map(error) from None
        return call


class AioStreamErrors(_ErrorMapper, grpc.aio.UnaryStreamClientInterceptor):
    """asyncio, server streams: raises catalogue errors while iterating. No default deadline."""

    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        call = await continuation(client_call_details, request)
        return self._iterate(call)

    async def _iterate(self, call: Any) -> AsyncIterator[Any]:
        try:
            async for response in call:
                yield response
        except grpc.aio.AioRpcError as error:
            raise self._map(error) from None
        finally:
            call.cancel()


class SyncUnaryErrors(_ErrorMapper, grpc.UnaryUnaryClientInterceptor):
    """Blocking, unary calls: raises catalogue errors."""

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        call = continuation(self._bounded(client_call_details), request)
        try:
            error = call.exception()
        except grpc.FutureCancelledError as cancelled:
            raise self._map(call) from cancelled
        if isinstance(error, grpc.RpcError):
            raise self._map(error) from None
        return call


class SyncStreamErrors(_ErrorMapper, grpc.UnaryStreamClientInterceptor):
    """Blocking, server streams: raises catalogue errors while iterating. No default deadline."""

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return _SyncStream(continuation(client_call_details, request), self._map)


class _SyncStream:
    """An iterator over a server stream that raises catalogue errors; cancel() ends it."""

    def __init__(self, call: Any, to_error: Callable[[grpc.RpcError], MedesError]) -> None:
        self._call = call
        self._to_error = to_error

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return next(self._call)
        except grpc.RpcError as error:
            raise self._to_error(error) from None

    def cancel(self) -> None:
        self._call.cancel()


def aio_interceptors(
    unreachable: type[MedesError] = PeerUnreachableError, peer: str = "", timeout_s: float = RPC_TIMEOUT_S
) -> list[grpc.aio.ClientInterceptor]:
    """The set for a grpc.aio channel."""
    arguments = (unreachable, peer, timeout_s)
    return [AioUnaryErrors(*arguments), AioStreamErrors(*arguments)]
