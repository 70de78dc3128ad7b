"""Which drivers can run on this node, and what their sandboxes are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from medes import plugins
from medes.config import AgentSettings
from medes.drivers.driver import Driver, DriverClass
from medes.drivers.subject import Subjects, UnknownSubjects
from medes.errors import UnsupportedError
from medes.plugins import Kind


@dataclass(frozen=True, slots=True)
class Drivers:
    """Those that can run here, by name; of the others, what each lacks here → how to get it. Any thread."""

    running: Mapping[str, Driver]
    missing: Mapping[str, Mapping[str, str]]
    _made: dict[type[Subjects], Subjects] = field(default_factory=dict)
    _by_driver: dict[str, Subjects] = field(default_factory=dict)

    def why_not(self, name: str) -> UnsupportedError:
        """The answer to who wants one that does not run here."""
        lacks = self.missing.get(name)
        if lacks is None:
            return UnsupportedError("no such driver", object=f"driver {name}", hint=", ".join(self.running))
        return plugins.cannot_run(f"the {name} driver", lacks, f"driver {name}")

    def subjects_of(self, name: str) -> Subjects:
        """What makes the sandboxes of a driver, whether it runs here or not: one for all drivers with the same class."""
        if (known := self._by_driver.get(name)) is not None:
            return known
        driver = self.running.get(name)
        if driver is not None:
            kind = driver.subjects
        else:
            try:
                kind = plugins.load(Kind.DRIVER, name).subjects
            except UnsupportedError:
                kind = UnknownSubjects
        return self._by_driver.setdefault(name, self._made.setdefault(kind, kind()))

    def close_subjects(self) -> None:
        for made in self._made.values():
            made.close()


def make_drivers(settings: AgentSettings) -> Drivers:
    """Raises unsupported when one that is offered cannot be imported."""
    running: dict[str, Driver] = {}
    missing: dict[str, Mapping[str, str]] = {}
    for name in plugins.names(Kind.DRIVER):
        kind: DriverClass = plugins.load(Kind.DRIVER, name)
        if lacks := kind.missing():
            missing[name] = lacks
        else:
            running[name] = kind.make(settings)
    return Drivers(running, missing)
