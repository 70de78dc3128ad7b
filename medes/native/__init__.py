"""Facade of the C++ core: the only place that imports the extension (`medes.native._core`)."""

from medes.native._core import *  # noqa: F403
