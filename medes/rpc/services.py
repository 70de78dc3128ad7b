"""How servicers are served: exceptions become catalogue errors on the wire, an observer hears of every call."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
import grpc.aio

from medes.errors import InternalError, InvalidArgumentError, MedesError, UnsupportedError
from medes.limits import GRPC_MESSAGE_BYTES_MAX
from medes.rpc.callers import Callers
from medes.rpc.identity import Access
from medes.rpc.status import error_metadata, packed, status_of

if TYPE_CHECKING:
    from medes.certs.identity import Identity

log = logging.getLogger(__name__)

# (method "/package.Service/Method", status name, seconds)
Observer = Callable[[str, str, float], None]


# What listens where a service is served, in a sentence that begins with "this is …".
SERVERS = {
    "medes.v1.AgentService": "an agent's restore API",
    "medes.v1.PeerService": "an agent's peer service",
    "medes.v1.ControllerService": "a controller",
}


def what_serves(service: str) -> str:
    """Empty for a service that is not the project's."""
    return SERVERS.get(service, "")


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


class Services:
    """What generated code adds servicers to: passes them on to a grpc.aio server with every handler wrapped, once.

    The wrapping turns exceptions into status + `medes-error-bin` (unknown ones become internal, logged), refuses
    malformed requests and tells `observer` of every finished call. A server interceptor could do the same, but gRPC
    would build all of it anew for every call.
    """

    def __init__(
        self,
        server: grpc.aio.Server,
        observer: Observer | None = None,
        served: Callable[[], str] = lambda: "",
        access: Access | None = None,
    ) -> None:
        """`served`: what this server is ("a controller"), for callers that ask it for what it does not have."""
        self._server = server
        self._observer = observer
        self._served = served
        self._access = access
        self._callers: list[Callers] = []

    def believe(self, identity: Identity) -> None:
        """Callers over TLS must be of what this identity believes, at each of their calls."""
        self._callers.append(Callers(identity))

    def look_again(self) -> None:
        """What is believed has changed."""
        for callers in self._callers:
            callers.look_again()

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        self._server.add_generic_rpc_handlers(tuple(_Wrapped(handler, self._wrap) for handler in handlers))

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Newer generated code adds everything a second time, by name; grpc.aio has no use for that either."""

    def refuse_the_rest(self) -> None:
        """After all services: answers calls of the project's that this server does not have."""
        self._server.add_generic_rpc_handlers((_Refusal(self._refuse),))

    def _refuse(self, method: str) -> Any:
        return grpc.unary_unary_rpc_method_handler(self._unary(method, self._no_such_method(method)))

    def _wrap(self, method: str, handler: Any) -> Any:
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(
                self._both(method, handler.stream_stream),
                _tolerant(handler.request_deserializer),
                handler.response_serializer,
            )
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._stream(method, handler.unary_stream, handler.response_serializer),
                _tolerant(handler.request_deserializer),
            )
        return grpc.unary_unary_rpc_method_handler(
            self._unary(method, handler.unary_unary, handler.response_serializer),
            _tolerant(handler.request_deserializer),
        )

    def _no_such_method(self, method: str) -> Callable[[Any, Any], Awaitable[Any]]:
        """Most often the right call at the wrong daemon's address."""

        async def refuse(request: Any, context: Any) -> Any:
            service, _, name = method.strip("/").partition("/")
            what, asked = self._served(), what_serves(service)
            if not asked or what == asked:
                raise UnsupportedError(
                    f"no such call: {name[:100]}", object=what, hint="is it of another version?"
                )
            raise UnsupportedError(
                f"this is {what or 'another server'}, not {asked}",
                object=method[:200],
                hint="check the address",
            )

        return refuse

    def _unary(
        self,
        method: str,
        behaviour: Callable[[Any, Any], Awaitable[Any]],
        serialize: Callable[[Any], bytes] | None = None,
    ) -> Any:
        async def call(request: Any, context: Any) -> Any:
            start_s = time.monotonic()
            try:
                self._admit(method, context)
                refuse_malformed(request, method)
                response = packed(
                    await behaviour(request, context), serialize, GRPC_MESSAGE_BYTES_MAX, method
                )
            except (grpc.aio.AbortError, grpc.aio.UsageError, asyncio.CancelledError):
                raise
            except Exception as error:
                failure = self._failure(method, error)
            else:
                self._observe(method, "OK", start_s)
                return response
            return await self._abort(method, failure, context, start_s)

        return call

    def _stream(
        self,
        method: str,
        behaviour: Callable[[Any, Any], AsyncIterator[Any]],
        serialize: Callable[[Any], bytes] | None,
    ) -> Any:
        async def call(request: Any, context: Any) -> AsyncIterator[Any]:
            start_s = time.monotonic()
            try:
                self._admit(method, context)
                refuse_malformed(request, method)
                with self._streaming(context):
                    async for response in behaviour(request, context):
                        yield packed(response, serialize, GRPC_MESSAGE_BYTES_MAX, method)
            except (grpc.aio.AbortError, grpc.aio.UsageError, asyncio.CancelledError, GeneratorExit):
                raise
            except Exception as error:
                failure = self._failure(method, error)
            else:
                self._observe(method, "OK", start_s)
                return
            await self._abort(method, failure, context, start_s)

        return call

    def _both(self, method: str, behaviour: Callable[[Any, Any], Awaitable[None]]) -> Any:
        """Streams of both sides: the handler reads and writes by the context."""

        async def call(requests: Any, context: Any) -> None:
            start_s = time.monotonic()
            try:
                self._admit(method, context)
                with self._streaming(context):
                    await behaviour(requests, context)
            except (grpc.aio.AbortError, grpc.aio.UsageError, asyncio.CancelledError):
                raise
            except Exception as error:
                failure = self._failure(method, error)
            else:
                self._observe(method, "OK", start_s)
                return
            await self._abort(method, failure, context, start_s)

        return call

    def _streaming(self, context: Any) -> contextlib.AbstractContextManager[None]:
        return self._callers[0].streaming(context) if self._callers else contextlib.nullcontext()

    def _admit(self, method: str, context: Any) -> None:
        for callers in self._callers:
            callers.check(context)
        if self._access:
            self._access(method, context)

    def _failure(self, method: str, error: Exception) -> _Failure:
        if not isinstance(error, MedesError):
            log.exception("%s failed", method, exc_info=error)
            error = InternalError(f"{type(error).__name__}: {error}", object=method)
        return _Failure(status_of(error), str(error)[:300], error_metadata(error))

    async def _abort(self, method: str, failure: _Failure, context: Any, start_s: float) -> None:
        """Not where the error is being handled: gRPC keeps what abort() raises until the garbage collector comes, and the
        error and its frames with it, which hold what the op had open."""
        self._observe(method, failure.status.name, start_s)
        await context.abort(*failure)

    def _observe(self, method: str, code: str, start_s: float) -> None:
        if self._observer:
            self._observer(method, code, time.monotonic() - start_s)


class _Failure(NamedTuple):
    """What a caller is told of an error."""

    status: grpc.StatusCode
    text: str
    metadata: tuple[tuple[str, bytes], ...]


class _Wrapped(grpc.GenericRpcHandler):
    """A service with each of its handlers wrapped on first use."""

    def __init__(self, handlers: grpc.GenericRpcHandler, wrap: Callable[[str, Any], Any]) -> None:
        self._handlers = handlers
        self._wrap = wrap
        self._known: dict[str, Any] = {}

    def service(self, handler_call_details: Any) -> Any:
        method = handler_call_details.method
        known = self._known.get(method)
        if known is None and (handler := self._handlers.service(handler_call_details)) is not None:
            known = self._known[method] = self._wrap(method, handler)
        return known


class _Refusal(grpc.GenericRpcHandler):
    """Has a handler for every method of the project's services."""

    def __init__(self, handler_of: Callable[[str], Any]) -> None:
        self._handler_of = handler_of

    def service(self, handler_call_details: Any) -> Any:
        method = handler_call_details.method
        return self._handler_of(method) if method.startswith("/medes.") else None


def refuse_malformed(request: Any, method: str) -> None:
    """Raises invalid_argument. For the handlers of request streams, which get their messages one by one."""
    if isinstance(request, _Malformed):
        raise InvalidArgumentError(f"malformed request: {request.reason}", object=method)
