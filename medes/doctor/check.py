"""One finding, and the list of all of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Check:
    """`works` or not; `needed_for` says what is lost without it (empty: information only)."""

    group: str
    name: str
    works: bool
    detail: str
    fix: str = ""
    needed_for: str = ""


def examine() -> list[Check]:
    """Runs all probes. A probe that fails itself becomes a finding; nothing is raised."""
    from medes.doctor import agent, certificates, kernel, libraries, machine, rdma, tracing, userfault

    checks: list[Check] = []
    for module in (machine, userfault, tracing, kernel, rdma, libraries, certificates, agent):
        try:
            checks.extend(module.probe())
        except Exception as error:  # a probe must not hide the others' findings
            name = module.__name__.rsplit(".", 1)[-1]
            checks.append(
                Check(name, "probe", False, f"{type(error).__name__}: {error}", "report this as a bug")
            )
    return checks
