"""Build hook of medes-client: its files, from the repository's `medes` package, and the stubs, from `proto`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# All else in medes/ is the distribution `medes`; its pyproject.toml excludes exactly these (a test compares).
FILES = (
    "__init__.py",
    "errors.py",
    "folders.py",
    "limits.py",
    "places.py",
    "types.py",
    "py.typed",
    "client/*.py",
    "certs/*.py",
    "rpc/*.py",
)
SERVERS = ("rpc/identity.py", "rpc/server.py", "rpc/services.py")


class ClientFiles(BuildHookInterface[Any]):
    """Puts the client's files and freshly generated stubs into the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        here = Path(self.root)
        if version == "editable":
            # A checkout's own `medes` has these files already (wheel.exclude is off there): only the metadata.
            return
        # In an archive of sources the folders lie beside this file, in the repository two above it.
        top = here if (here / "proto").is_dir() else here.parents[1]
        package = top / "medes"
        own = {path for pattern in FILES for path in package.glob(pattern)}
        own -= {package / name for name in SERVERS}
        included = build_data["force_include"]
        for path in sorted(own):
            included[str(path)] = str(path.relative_to(top))
        self._folder = tempfile.TemporaryDirectory(prefix="medes-stubs-")
        stubs = Path(self._folder.name)
        subprocess.run([sys.executable, str(top / "proto" / "generate.py"), str(stubs)], check=True)
        for path in sorted(stubs.iterdir()):
            included[str(path)] = f"medes/rpc/gen/{path.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if version != "editable":
            self._folder.cleanup()
