"""begin() and end() over one stream (the Activities call) for blocking callers: a third of what a call each costs.

The stream is opened with the first of them and again after it broke; an agent that does not have the call is asked the
old way. Like a call that fails, a stream that breaks leaves open whether the agent has heard what was under way.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Iterator
from typing import Any

import grpc

from medes.client.messages import activity_request, answer_error, request
from medes.errors import AgentUnreachableError, DeadlineExceededError, MedesError, UnsupportedError
from medes.rpc.calls import SyncChannel
from medes.rpc.gen import agent_pb2 as pb
from medes.types import Activity


class _Slot:
    """One caller that waits for its answer."""

    __slots__ = ("answer", "done", "failure")

    def __init__(self) -> None:
        self.done = threading.Lock()
        self.done.acquire()
        self.answer: Any = None
        self.failure: MedesError | None = None


class _Stream:
    """One stream, until it breaks. Thread-safe; a thread of its own hands out the answers."""

    def __init__(self, open_stream: Any, channel: SyncChannel) -> None:
        self._channel = channel
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._waiting: dict[int, _Slot] = {}
        self._lock = threading.Lock()
        self.failure: MedesError | None = None
        self.answered = False
        answers = open_stream(iter(self._requests.get, None))
        threading.Thread(target=self._read, args=(answers,), name="medes-activity", daemon=True).start()

    def ask(self, message: Any, timeout_s: float) -> Any:
        """The answer. Raises deadline_exceeded, and what broke the stream."""
        slot, number = _Slot(), message.number
        with self._lock:
            if self.failure is not None:
                raise self.failure
            self._waiting[number] = slot
        try:
            self._requests.put(message)
            answered = slot.done.acquire(timeout=min(max(timeout_s, 0.0), threading.TIMEOUT_MAX))
        except BaseException:  # Ctrl-C: as a call would be cancelled
            self._give_up(number)
            raise
        if not answered and self._give_up(number):
            raise DeadlineExceededError(
                f"no answer within {timeout_s:g} s",
                object=self._channel.peer,
                hint="timeout_s gives it longer",
            )
        if not answered:
            slot.done.acquire()  # it came in this very moment
        if slot.failure is not None:
            raise slot.failure
        return slot.answer

    def end(self) -> None:
        """No more will be asked: the agent ends the stream, and the thread ends with it."""
        self._requests.put(None)

    def _give_up(self, number: int) -> bool:
        with self._lock:
            waited = self._waiting.pop(number, None) is not None
        if waited:
            self._requests.put(pb.ActivityRequest(number=number, cancelled=True))
        return waited

    def _read(self, answers: Iterator[Any]) -> None:
        failure: MedesError = AgentUnreachableError("the agent ended the stream", object=self._channel.peer)
        try:
            for answer in answers:
                self.answered = True
                with self._lock:
                    slot = self._waiting.pop(answer.number, None)
                if slot is not None:
                    slot.answer = answer
                    slot.done.release()
        except grpc.RpcError as error:
            try:
                failure = self._channel.error(error)
            except MedesError as closed:
                failure = closed
        finally:
            with self._lock:
                self.failure = failure
                waiting, self._waiting = self._waiting, {}
            self._requests.put(None)  # ends the thread in which gRPC sends
            for slot in waiting.values():
                slot.failure = failure
                slot.done.release()


class ActivityCalls:
    """What a client asks; the stream behind it comes and goes."""

    def __init__(self, stub: Any, channel: SyncChannel) -> None:
        self._stub = stub
        self._channel = channel
        self._numbers = itertools.count(1)
        self._stream: _Stream | None = None
        self._lock = threading.Lock()
        self._one_by_one = False  # the agent does not have the call

    def ask(self, sandbox_id: str, activity: Activity) -> Any:
        """The agent's answer, a Sandbox message. Raises as a call of its own would."""
        number: Any = int(activity)
        message = request(
            pb.ActivityRequest, number=next(self._numbers), sandbox_id=sandbox_id, activity=number
        )
        self._channel.check()
        self._channel.require_size(message.ByteSize())  # one that is refused would end the stream of all
        if not self._one_by_one:
            stream = self._open()
            try:
                answer = stream.ask(message, self._channel.timeout_s)
            except UnsupportedError:
                if stream.answered:
                    raise
                self._one_by_one = True
            else:
                if answer.HasField("error"):
                    raise answer_error(answer.error)
                return answer.sandbox
        return self._stub.NotifyActivity(activity_request(sandbox_id, activity))

    def __del__(self) -> None:
        # A client that is dropped without close(), perhaps one a request, must not leave its stream at the agent.
        if (stream := getattr(self, "_stream", None)) is not None:
            stream.end()

    def _open(self) -> _Stream:
        stream = self._stream
        if stream is None or stream.failure is not None:
            with self._lock:
                stream = self._stream
                if stream is None or stream.failure is not None:
                    stream = self._stream = _Stream(self._stub.Activities, self._channel)
        return stream
