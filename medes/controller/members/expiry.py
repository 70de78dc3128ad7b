"""The end of what the controller knows of nodes: of those that have fallen silent, and of those that nobody knows.

Functions of state and time (seconds of a monotonic clock), as in medes.controller.api.handlers. They may block on the store.
"""

from __future__ import annotations

import logging

from medes.controller.state import ControllerState

log = logging.getLogger(__name__)


def expire(state: ControllerState, now_s: float) -> list[str]:
    """Declares silent nodes dead: their bases leave the registry. Returns them. Call often."""
    with state.node_changes:
        died = state.membership.expire(now_s)
        for node_id in died:
            forget_node(node_id, state)
            retired = state.store.retire_silent(node_id)
            log.warning(
                "node is silent and counts as dead", extra={"node": node_id, "bases_retired": retired}
            )
        _sweep(state)
    state.advisor.expire(now_s)
    return died


def _sweep(state: ControllerState) -> None:
    """A store that outlives controllers may hold bases of nodes that died while none was there to see it."""
    alive = state.membership.alive_ids()
    # Longer than our own lease: between two of our rounds a node must not look dead to another controller.
    without = state.store.renew(alive, 2 * state.settings.lease_ms / 1000)
    if without & state.renewed:
        # Flushed, or another one in its place: what it held, nodes know.
        log.warning("the registry store has lost what it held: nodes announce everything again")
        state.incarnation = state.chance.hex(8)
    state.renewed = alive
    for node_id in state.store.orphans() - alive:
        retired = state.store.retire_node(node_id)
        log.warning(
            "bases of a node that no controller knows", extra={"node": node_id, "bases_retired": retired}
        )


def forget_node(node_id: str, state: ControllerState) -> None:
    """What was known of its sandboxes, and what it was advised. Its bases are the caller's to retire."""
    state.directory.drop_node(node_id)
    state.advisor.forget_node(node_id)
