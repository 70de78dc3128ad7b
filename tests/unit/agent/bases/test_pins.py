"""Pins: a base is free only when nobody is left, in whatever order pins come and go."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from medes.agent.bases.pins import PinTable

NODES, HOLDERS, BASES = ["n1", "n2"], ["h1", "h2"], [1, 2, 3]
steps = st.lists(
    st.tuples(
        st.sampled_from(["pin", "unpin", "unpin_all", "replace"]),
        st.sampled_from(NODES),
        st.sampled_from(HOLDERS),
        st.sets(st.sampled_from(BASES)),
    ),
    max_size=30,
)


@given(steps)
def test_against_a_plain_model(history: list[tuple[str, str, str, set[int]]]) -> None:
    table = PinTable()
    model: dict[tuple[str, str], set[int]] = {}
    for kind, node, holder, ids in history:
        before = set().union(*model.values()) if model else set()
        if kind == "pin":
            table.pin(node, holder, "d", ids)
            model.setdefault((node, holder), set()).update(ids)
            freed = set()
        elif kind == "unpin":
            freed = table.unpin(node, holder, ids)
            model.get((node, holder), set()).difference_update(ids)
        elif kind == "unpin_all":
            freed = table.unpin(node, holder)
            model.pop((node, holder), None)
        else:
            freed, _ = table.replace_node(node, {holder: ("d", ids)})
            model = {key: held for key, held in model.items() if key[0] != node}
            model[(node, holder)] = set(ids)
        after = set().union(*model.values()) if model else set()
        assert freed == before - after
        for base in BASES:
            holders = {key for key, held in model.items() if base in held}
            assert table.is_pinned(base) == bool(holders)
            assert table.count(base) == len(holders)


def test_repeating_a_pin_is_harmless() -> None:
    table = PinTable()
    table.pin("n1", "h1", "d", [1])
    table.pin("n1", "h1", "d", [1])
    assert table.count(1) == 1
    assert table.unpin("n1", "h1", [1]) == {1}
    assert table.unpin("n1", "h1", [1]) == set()


def test_replace_names_the_holders_that_went() -> None:
    table = PinTable()
    table.pin("n1", "h1", "d", [1])
    table.pin("n1", "h2", "d", [1, 2])
    table.pin("n2", "h1", "d", [2])
    freed, gone = table.replace_node("n1", {"h1": ("d", [3])})
    assert (freed, gone) == ({1}, {"h2"})
    assert table.held("n1", "h1") == {3}


def test_peer_domains_leave_the_own_node_out() -> None:
    table = PinTable()
    table.pin("me", "h", "d1", [1])
    table.pin("n2", "h", "d2", [1])
    assert table.peer_domains("me") == {("n2", "d2")}
