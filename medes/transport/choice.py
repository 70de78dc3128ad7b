"""Which transports a node runs beside TCP, as the `transport` setting says."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from medes import plugins
from medes.config import AgentSettings
from medes.errors import InvalidArgumentError, MedesError
from medes.plugins import Kind
from medes.transport.transport import Transport

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Transports:
    """Those that run, the one to be tried first in front; of the others that were considered, why not."""

    running: tuple[Transport, ...] = ()
    why_not: tuple[str, ...] = ()
    required: str = ""  # a peer that cannot be read by it is not read at all

    def __str__(self) -> str:
        ways = [f"{t.name} on {t.where}" if t.where else t.name for t in self.running]
        return ", ".join([*ways, "TCP"]) + "".join(f"; {why}" for why in self.why_not)


def open_transports(settings: AgentSettings) -> Transports:
    """`auto` takes the project's own that can run here, and that encrypt or are on a way that is trusted; an installed
    one is used when it is named. Blocks for a second at most. Raises unsupported when one that is named cannot run."""
    named = settings.transport
    if named in ("local", "tcp"):
        return Transports(why_not=(f"the transport is set to {named}",))
    if named != "auto":
        kind: type[Transport] = plugins.load(Kind.TRANSPORT, named)
        if not kind.encrypts and not settings.insecure_plaintext:
            log.warning("%s by setting: page bytes go their way unencrypted", named)
        return Transports((kind.open(settings),), required=named)
    running, why_not = [], []
    kinds: list[type[Transport]] = [
        plugins.load(Kind.TRANSPORT, name) for name in plugins.OWN[Kind.TRANSPORT]
    ]
    for kind in sorted(kinds, key=lambda kind: -kind.preference):
        if not (kind.encrypts or settings.insecure_plaintext or kind.trusts(settings)):
            why_not.append(
                f"{kind.name} does not encrypt, and no setting says that its way is the cluster's own"
            )
            continue
        try:
            running.append(kind.open(settings))
        except InvalidArgumentError:
            raise
        except MedesError as error:
            why_not.append(f"no {kind.name}: {error}")
    return Transports(tuple(running), tuple(why_not))
