"""`medes doctor`: what of Medes works on this machine, found by trying it, and how to get the rest.

Each probe tries the real thing on throw-away objects (a page of its own, a child of its own) and changes nothing.
"""

from medes.doctor.check import Check, examine

__all__ = ["Check", "examine"]
