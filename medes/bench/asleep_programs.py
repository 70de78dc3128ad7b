"""The programs of the asleep benchmark, and what each needs of the machine."""

from __future__ import annotations

from medes.bench.asleep_making import Program
from medes.bench.programs import chromium, jupyter, mcp, postgresql, qemu, servers

PROGRAMS = {
    program.name: program
    for program in (
        Program("redis", servers.redis, commands=("redis-server",)),
        Program("http.server", servers.http_server),
        Program("node", servers.node, commands=("node",)),
        Program("gunicorn", servers.gunicorn, modules=("gunicorn",)),
        Program("uvicorn", servers.uvicorn, modules=("uvicorn", "fastapi")),
        Program("jvm", servers.jvm, commands=("java", "javac")),
        Program("go", servers.go, commands=("go",)),
        Program("nginx", servers.nginx, commands=("nginx",)),
        Program("pool", servers.pool),
        Program(
            "functions-framework",
            servers.functions_framework,
            modules=("functions_framework",),
        ),
        Program("postgresql", postgresql.postgresql, commands=postgresql.COMMANDS),
        Program("jupyter", jupyter.jupyter, modules=("ipykernel", "jupyter_client")),
        Program("mcp", mcp.mcp, commands=("node", mcp.COMMAND)),
        Program("chromium", chromium.chromium, commands=("chromium",), modules=("websockets",)),
        Program(
            "qemu",
            qemu.qemu,
            commands=("qemu-system-x86_64", "busybox"),
            files=(qemu.KERNELS,),
        ),
    )
}
