"""What can be plugged in, by kind and name: the project's own parts, a line each, and those of installed distributions.

A distribution offers a part as an entry point of the kind's group (`[project.entry-points."medes.drivers"]`,
`vm = "my_package.vm:VmDriver"`). Nothing is imported before somebody names it. The daemons run what is installed beside
them: whoever may install there is trusted with all that they may do.
"""

from __future__ import annotations

import enum
import importlib
from collections.abc import Mapping
from typing import Any

from medes.errors import AlreadyExistsError, UnsupportedError


class Kind(enum.Enum):
    """What the parts of a group are; the value is the entry points' group."""

    DRIVER = "medes.drivers"  # medes.drivers.driver.DriverClass
    POLICY = "medes.policies"  # medes.policy.policy.PolicyClass
    TRANSPORT = (
        "medes.transports"  # medes.transport.transport.Transport; TCP, which every node has, is behind them
    )
    REGISTRY_STORE = "medes.registry_stores"  # medes.controller.registry.store.StoreClass; scheme of URL
    FUNCTION_CONTRACT = "medes.function_contracts"  # medes.runtimes.contracts.contract.Contract
    EVALUATION_CASE = "medes.evaluation_cases"  # medes.eval.case.Case


OWN = {
    Kind.DRIVER: {
        "live": "medes.drivers.live:LiveDriver",
        "image": "medes.drivers.image:ImageDriver",
    },
    Kind.POLICY: {
        "fixed": "medes.policy.fixed:FixedPeriods",
    },
    Kind.TRANSPORT: {
        "rdma": "medes.transport.rdma.rdma_transport:RdmaTransport",
    },
    Kind.REGISTRY_STORE: {
        "memory": "medes.controller.registry.store:MemoryStore",
        "redis": "medes.controller.registry.redis_store:RedisStore",
        "rediss": "medes.controller.registry.redis_store:RedisStore",
        "unix": "medes.controller.registry.redis_store:RedisStore",
    },
    Kind.FUNCTION_CONTRACT: {
        "native": "medes.runtimes.contracts.native:NativeContract",
    },
    Kind.EVALUATION_CASE: {
        "idle-memory": "medes.eval.cases.idle_memory:IdleMemory",
        "first-answer": "medes.eval.cases.first_answer:FirstAnswer",
        "dedup": "medes.eval.cases.dedup:Dedup",
        "restore": "medes.eval.cases.restore:Restore",
        "transport": "medes.eval.cases.transport:Transport",
        "asleep": "medes.eval.cases.asleep:Asleep",
    },
}


def offers(kind: Kind) -> dict[str, str]:
    """Name → "module:attribute". Raises already_exists when two offer one name."""
    import importlib.metadata  # milliseconds that most commands need not pay

    found = dict(OWN[kind])
    for point in importlib.metadata.entry_points(group=kind.value):
        known = found.setdefault(point.name, point.value)
        if known != point.value:
            raise AlreadyExistsError(
                f"{known} and {point.value} both call themselves {point.name!r}",
                object=kind.value,
                hint="uninstall one of them",
            )
    return found


def names(kind: Kind) -> tuple[str, ...]:
    """All that can be named, the project's own first."""
    return tuple(offers(kind))


def cannot_run(what: str, lacks: Mapping[str, str], object: str) -> UnsupportedError:
    """The answer to who wants a part that this machine lacks something for. `lacks`: what, and how to get it."""
    return UnsupportedError(
        f"{what} cannot run here: {'; '.join(lacks)}", object=object, hint="; ".join(lacks.values())
    )


def load(kind: Kind, name: str) -> Any:
    """The part of that name. Raises unsupported when there is none, or when its module cannot be imported."""
    target = offers(kind).get(name)
    if target is None:
        raise UnsupportedError(
            f"there is no {name!r}", object=kind.value, hint="one of " + ", ".join(names(kind))
        )
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UnsupportedError(f"{target} cannot be had: {error}", object=f"{kind.value} {name}") from error
