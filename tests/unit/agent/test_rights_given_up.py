"""Rights are given up while there is one thread, or not at all."""

import threading

import pytest

from medes.agent.node import rights
from medes.config import AgentSettings
from medes.errors import IoError


def test_a_process_with_threads_is_refused() -> None:
    """The others would keep everything."""
    end = threading.Event()
    other = threading.Thread(target=end.wait)
    other.start()
    try:
        with pytest.raises(IoError, match="threads run already"):
            rights.restrict(AgentSettings())
    finally:
        end.set()
        other.join()
