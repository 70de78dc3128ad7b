"""The function host: Medes' own small FaaS runtime, and the functions it is measured with.

`instance`, `hooks`, `checked_state` and `wire` run inside the sandbox, whose memory is what gets deduplicated: they
import the standard library only. Everything else runs on the host's side.
"""
