"""Calls between the daemons of a simulated cluster: messages to the same servicers, without a socket between.

A message arrives after the network's latency. A call to who is down or cut off fails as a connection that is refused; one
between two that lose each other's messages ends with its deadline. Messages are handed over as they are: clients and
servicers make each for one call, and keep none.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from google.protobuf.message import Message

from medes.errors import DeadlineExceededError, MedesError


class _Context:
    """What a servicer may ask of a call: nobody shows a certificate, as with `insecure_plaintext`."""

    def __init__(self, caller: str) -> None:
        self._caller = caller

    def auth_context(self) -> dict[str, list[bytes]]:
        return {}

    def peer(self) -> str:
        return self._caller


class Network:
    """Who can be reached by whom. Names are nodes, and "controller"."""

    def __init__(self, latency_s: float) -> None:
        self.latency_s = latency_s
        self._servicers: dict[tuple[str, str], Any] = {}  # (name, service) → servicer
        self._cut: set[str] = set()
        self._lost: set[frozenset[str]] = set()  # pairs

    def serve(self, name: str, service: str, servicer: Any) -> None:
        self._servicers[name, service] = servicer

    def end(self, name: str) -> None:
        """Nothing of that name serves any more."""
        self._servicers = {key: s for key, s in self._servicers.items() if key[0] != name}

    def cut(self, *names: str) -> None:
        """These reach nobody and are reached by nobody, until `heal`."""
        self._cut |= set(names)

    def heal(self, *names: str) -> None:
        self._cut -= set(names)

    def lose(self, one: str, other: str) -> None:
        """From now on their messages to each other get lost, until `find_again`."""
        self._lost.add(frozenset((one, other)))

    def find_again(self, one: str, other: str) -> None:
        self._lost.discard(frozenset((one, other)))

    def loses(self, one: str, other: str) -> bool:
        return bool(self._lost) and frozenset((one, other)) in self._lost

    def find(self, caller: str, name: str, service: str) -> Any:
        """The servicer, None where it cannot be reached."""
        if caller != name and (caller in self._cut or name in self._cut):
            return None
        return self._servicers.get((name, service))


class Link:
    """A service of one daemon as another calls it: medes.rpc.channel.Calls."""

    def __init__(
        self,
        network: Network,
        caller: str,
        name: str,
        service: str,
        unreachable: type[MedesError],
        timeout_s: float,
    ) -> None:
        """`timeout_s`: of calls that name none."""
        self._network = network
        self._caller = caller
        self._name = name
        self._service = service
        self._unreachable = unreachable
        self._timeout_s = timeout_s

    @property
    def stub(self) -> Any:
        return self

    def __getattr__(self, method: str) -> Callable[..., Any]:
        if method.startswith("_"):
            raise AttributeError(method)
        begin = self._stream if method.startswith("List") and self._service == "peer" else self._call

        def call(request: Message, timeout: float | None = None) -> Any:
            return begin(timeout or self._timeout_s, method, request)

        self.__dict__[method] = call  # found without this the next time
        return call

    async def _servicer(self) -> Any:
        await asyncio.sleep(self._network.latency_s)
        if self._network.loses(self._caller, self._name):
            await asyncio.Event().wait()  # for the call's deadline
        servicer = self._network.find(self._caller, self._name, self._service)
        if servicer is None:
            raise self._unreachable("it does not answer", object=self._name)
        return servicer

    def _failure(self, error: Exception, timeout_s: float) -> MedesError:
        if isinstance(error, MedesError):
            return error.alone()
        return DeadlineExceededError(f"no answer within {timeout_s:g} s", object=self._name)

    async def _call(self, timeout_s: float, method: str, request: Message) -> Message:
        try:
            async with asyncio.timeout(timeout_s):
                servicer = await self._servicer()
                answer: Message = await getattr(servicer, method)(request, _Context(self._caller))
                await self._servicer()  # the answer has to come back
                return answer
        except (TimeoutError, MedesError) as error:
            raise self._failure(error, timeout_s) from None

    async def _stream(self, timeout_s: float, method: str, request: Message) -> AsyncIterator[Message]:
        try:
            async with asyncio.timeout(timeout_s):
                servicer = await self._servicer()
                async for answer in getattr(servicer, method)(request, _Context(self._caller)):
                    yield answer
        except (TimeoutError, MedesError) as error:
            raise self._failure(error, timeout_s) from None

    async def close(self) -> None:
        """There is nothing to end."""
