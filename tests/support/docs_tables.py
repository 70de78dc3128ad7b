"""`python -m tests.support.docs_tables` (`make tables`): writes the tables of docs/ that the code says anew.

Such a table stands behind a comment that names it, `<!-- table: errors, by make tables -->`; its head stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from medes.config import AgentSettings, ControllerSettings, FunctionOverrides, PeerOverrides
from tests.support import docs_rows

DOCS = Path(__file__).resolve().parents[2] / "docs"
TABLES: Mapping[str, Callable[[], list[str]]] = {
    "errors": docs_rows.error_rows,
    "exit codes": docs_rows.exit_rows,
    "agent settings": lambda: docs_rows.setting_rows(AgentSettings),
    "controller settings": lambda: docs_rows.setting_rows(ControllerSettings),
    "function settings": lambda: docs_rows.override_rows(FunctionOverrides),
    "peer settings": lambda: docs_rows.override_rows(PeerOverrides),
    "metrics of both": lambda: docs_rows.metric_rows()[0],
    "controller metrics": lambda: docs_rows.metric_rows()[1],
    "agent metrics": lambda: docs_rows.metric_rows()[2],
}
_TABLE = re.compile(r"(<!-- table: ([\w ]+), by make tables -->\n\n\|.*\n\|[-|]+\n)((?:\|.*\n)*)")


def names(text: str) -> list[str]:
    """The tables that a document has."""
    return [found[2] for found in _TABLE.finditer(text)]


def written(text: str) -> str:
    """A document with its tables as the code says. KeyError: a table of that name is made by nobody."""
    return _TABLE.sub(lambda found: found[1] + "".join(f"{row}\n" for row in TABLES[found[2]]()), text)


def main() -> None:
    for path in sorted(DOCS.rglob("*.md")):
        before = path.read_text()
        after = written(before)
        if after != before:
            path.write_text(after)
            print(path.relative_to(DOCS.parent))


if __name__ == "__main__":
    main()
