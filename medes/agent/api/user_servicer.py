"""The restore API for users other than root: the calls that they may make, each about their own sandboxes."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from medes.agent.agent import Agent
from medes.agent.api.registration import new_sandbox_id, require_one_name
from medes.agent.api.servicer import AGENT_SERVICE, AgentServicer
from medes.agent.sandboxes import users
from medes.drivers.subject import Asked
from medes.errors import (
    LimitExceededError,
    MedesError,
    NotFoundError,
    PermissionDeniedError,
    UnsupportedError,
)
from medes.limits import PIDS_PER_SANDBOX_MAX, USER_WATCHES_MAX
from medes.rpc.convert import to_proto
from medes.rpc.gen import agent_pb2
from medes.rpc.user_socket import UserSocket
from medes.units import bytes_text

ALLOWED = ("Register", "NotifyActivity", "Dedup", "Restore", "Purge", "Get", "Explain", "List", "Watch")
_MAIN_SOCKET = "use the agent's main socket, where its settings admit you"


class UserServicer(AgentServicer):
    """What of AgentService is not named in ALLOWED is refused, also what later versions add to it."""

    def __init__(self, agent: Agent, socket: UserSocket) -> None:
        super().__init__(agent)
        self._socket = socket
        self._calls = users.CallsInFlight(agent.settings.user_calls_max)
        self._watches = users.CallsInFlight(USER_WATCHES_MAX)
        for method in agent_pb2.DESCRIPTOR.services_by_name[AGENT_SERVICE.rpartition(".")[2]].methods:
            if method.name not in ALLOWED:
                refusal: Any = _refuse_stream if method.server_streaming else _refuse
                refusal = _no_stream_of_calls if method.client_streaming else refusal
                setattr(self, method.name, refusal)

    @contextmanager
    def _call(self, context: Any, calls: users.CallsInFlight | None = None) -> Iterator[int]:
        """Who calls, within their bounds; their errors name sandboxes as they do."""
        uid = self._socket.caller(context).uid
        if uid in (0, os.geteuid()):
            # Root of some container, perhaps: its ids are root's, its processes are not all of root's.
            raise PermissionDeniedError("this socket is for other users", object="root", hint=_MAIN_SOCKET)
        with (calls or self._calls).one(uid):
            try:
                yield uid
            except MedesError as error:
                error.object = error.object.removeprefix(users.prefix_of(uid))
                raise

    def _own(self, uid: int, request: Any) -> Any:
        """The request about the sandbox as the agent knows it. Raises not_found, for other people's as well."""
        wanted = users.prefix_of(uid) + request.sandbox_id
        if wanted not in self._agent.entries:
            raise NotFoundError(
                "no such sandbox on this node", object=request.sandbox_id[:200] or "(empty id)"
            )
        request.sandbox_id = wanted
        return request

    # --- register ------------------------------------------------------------------------------------------
    async def Register(self, request: Any, context: Any) -> Any:
        with self._call(context) as uid:
            await self._check_registration(uid, request)
            name = request.sandbox_id or new_sandbox_id(request.function, self._agent.chance)
            request.sandbox_id = users.prefix_of(uid) + name
            return _shown(await self._register(request), uid)

    async def _check_registration(self, uid: int, request: Any) -> None:
        agent = self._agent
        if len(request.pids) > PIDS_PER_SANDBOX_MAX:
            raise LimitExceededError(f"{len(request.pids)} pids", object="pids")
        if request.driver not in ("", agent.settings.driver):
            raise PermissionDeniedError("the driver is the node's choice", object=f"driver {request.driver}")
        own_domain = users.domain_of(uid, agent.node_id)
        for what, value in (("tenant", request.tenant), ("domain", request.domain)):
            if value not in ("", own_domain):
                raise PermissionDeniedError(
                    f"sandboxes of user {uid} on this node are {own_domain}'s",
                    object=f"{what} {value[:200]}",
                    hint=f"register without a {what}",
                )
        request.tenant = request.domain = own_domain
        if request.hook_address:
            users.require_hook_of(uid, request.hook_address)
        require_one_name(request.pids, request.cgroup, request.subject, request.sandbox_id)
        asked = Asked(tuple(request.pids), request.cgroup, request.subject)
        own = [e for e in agent.entries.values() if users.owner_of(e.id) == uid]
        subjects = agent.drivers.subjects_of(agent.settings.driver)
        asked_bytes = await agent.in_ops(subjects.admit, uid, asked, [e.subject for e in own])
        known = users.prefix_of(uid) + request.sandbox_id in agent.entries
        if not known and len(own) >= agent.settings.user_sandboxes_max:
            raise LimitExceededError(f"already {len(own)} sandboxes", object=f"user {uid}")
        held = sum(e.warm_bytes for e in own) + asked_bytes
        if not known and held > agent.settings.user_bytes_max:
            raise LimitExceededError(
                f"{bytes_text(held)} in all; {bytes_text(agent.settings.user_bytes_max)} are allowed",
                object=f"user {uid}",
            )

    # --- about one's own sandboxes -------------------------------------------------------------------------
    async def NotifyActivity(self, request: Any, context: Any) -> Any:
        with self._call(context) as uid:
            return _shown(await super().NotifyActivity(self._own(uid, request), context), uid)

    async def Dedup(self, request: Any, context: Any) -> Any:
        with self._call(context) as uid:
            if request.make_base:
                raise PermissionDeniedError("bases are made by the node's choice", object=request.sandbox_id)
            return _shown(await super().Dedup(self._own(uid, request), context), uid)

    async def Restore(self, request: Any, context: Any) -> Any:
        with self._call(context) as uid:
            return _shown(await super().Restore(self._own(uid, request), context), uid)

    async def Purge(self, request: Any, context: Any) -> Any:
        with self._call(context) as uid:
            return await super().Purge(self._own(uid, request), context)

    async def Get(self, request: Any, context: Any) -> Any:
        with self._call(context) as uid:
            return _shown(await super().Get(self._own(uid, request), context), uid)

    async def Explain(self, request: Any, context: Any) -> Any:
        with self._call(context) as uid:
            return _shown(await super().Explain(self._own(uid, request), context), uid)

    async def List(self, request: Any, context: Any) -> Any:
        with self._call(context) as uid:
            everything = await super().List(request, context)
            response = agent_pb2.ListResponse()
            response.sandboxes.extend(
                _shown(s, uid) for s in everything.sandboxes if users.owner_of(s.sandbox_id) == uid
            )
            return response

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        with self._call(context, self._watches) as uid:
            async for event in self._agent.watch.events(request.function):
                if users.owner_of(event.sandbox.sandbox_id) == uid:
                    yield _shown(to_proto(agent_pb2.SandboxEvent, event), uid)


async def _refuse(request: Any, context: Any) -> Any:
    raise PermissionDeniedError("a call about the whole node", object="user socket", hint=_MAIN_SOCKET)


async def _no_stream_of_calls(requests: Any, context: Any) -> None:
    """Each call is counted and checked here; clients then make them one by one, as they do with older agents."""
    raise UnsupportedError("not over this socket", object="user socket", hint="use NotifyActivity")


async def _refuse_stream(request: Any, context: Any) -> AsyncIterator[Any]:
    yield await _refuse(request, context)


def _shown(answer: Any, uid: int) -> Any:
    """An answer as its user knows the sandbox; it is the caller's to change."""
    sandbox = answer if isinstance(answer, agent_pb2.Sandbox) else answer.sandbox
    sandbox.sandbox_id = sandbox.sandbox_id.removeprefix(users.prefix_of(uid))
    return answer
