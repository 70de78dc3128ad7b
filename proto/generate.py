"""Generates the gRPC stubs of proto/medes/v1 into OUT as the package `medes.rpc.gen` (run by the build)."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from grpc_tools import protoc

HERE = Path(__file__).resolve().parent


def main(out: Path) -> int:
    out.mkdir(parents=True, exist_ok=True)
    protos = sorted(str(p.relative_to(HERE)) for p in (HERE / "medes" / "v1").glob("*.proto"))
    status = protoc.main(
        [
            "protoc",
            f"-I{HERE}",
            f"--python_out={out}",
            f"--pyi_out={out}",
            f"--grpc_python_out={out}",
            *protos,
        ]
    )
    if status:
        return int(status)
    # protoc lays files out by proto path (medes/v1/x_pb2.py); ours live flat in medes.rpc.gen.
    for path in sorted((out / "medes" / "v1").iterdir()):
        text = path.read_text()
        text = re.sub(r"from medes\.v1 import", "from medes.rpc.gen import", text)
        (out / path.name).write_text(text)
        path.unlink()
    (out / "medes" / "v1").rmdir()
    (out / "medes").rmdir()
    (out / "__init__.py").write_text('"""Generated from proto/medes/v1; see proto/generate.py."""\n')
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
