"""Servers of HTTP, and redis: how each is made."""

from __future__ import annotations

import sys
from pathlib import Path

from medes.bench import asleep_sources as sources
from medes.bench.asleep_making import Made, Sizes, build, which
from medes.bench.asleep_state import HOST, Files, Items, Keys


def redis(folder: Path, port: int, sizes: Sizes) -> Made:
    options = ["--bind", HOST, "--port", str(port), "--dir", str(folder), "--save", ""]
    return Made(["redis-server", *options], Keys(sizes.keys))


def http_server(folder: Path, port: int, sizes: Sizes) -> Made:
    files = folder / "files"
    state = Files(files)
    return Made([sys.executable, "-m", "http.server", str(port), "--bind", HOST, "-d", str(files)], state)


def node(folder: Path, port: int, sizes: Sizes) -> Made:
    (folder / "server.js").write_text(sources.NODE)
    return Made(["node", "server.js", str(port)], Items(sizes.items))


def gunicorn(folder: Path, port: int, sizes: Sizes) -> Made:
    python_source(folder, "wsgi.py", sources.WSGI)
    command = [sys.executable, "-m", "gunicorn", "--workers", "2", "--bind", f"{HOST}:{port}", "wsgi:app"]
    return Made(command, Items(sizes.items, processes=2))


def uvicorn(folder: Path, port: int, sizes: Sizes) -> Made:
    python_source(folder, "asgi.py", sources.FASTAPI)
    command = [sys.executable, "-m", "uvicorn", "--host", HOST, "--port", str(port), "asgi:app"]
    return Made(command, Items(sizes.items))


def functions_framework(folder: Path, port: int, sizes: Sizes) -> Made:
    python_source(folder, "main.py", sources.FUNCTIONS_FRAMEWORK)
    command = [sys.executable, "-m", "functions_framework", "--host", HOST, "--port", str(port)]
    return Made([*command, "--target", "answer", "--source", "main.py"], Items(sizes.items))


def pool(folder: Path, port: int, sizes: Sizes) -> Made:
    python_source(folder, "pool.py", sources.POOL)
    return Made([sys.executable, "pool.py", str(port)], Items(sizes.items, processes=2))


def jvm(folder: Path, port: int, sizes: Sizes) -> Made:
    (folder / "Server.java").write_text(sources.JAVA)
    build("javac", "Server.java", folder=folder)
    return Made(["java", "-cp", str(folder), "Server", str(port)], Items(sizes.items))


def go(folder: Path, port: int, sizes: Sizes) -> Made:
    (folder / "server.go").write_text(sources.GO)
    environment = {"GOCACHE": str(folder / "cache"), "GOPATH": str(folder / "path"), "GO111MODULE": "off"}
    build("go", "build", "-o", "server", "server.go", folder=folder, **environment)
    return Made([str(folder / "server"), str(port)], Items(sizes.items))


def nginx(folder: Path, port: int, sizes: Sizes) -> Made:
    (folder / "nginx.conf").write_text(sources.NGINX.format(folder=folder, port=port))
    state = Files(folder / "files")
    for path in (folder.parent, folder, folder / "files"):
        path.chmod(0o755)  # its workers are another user's
    return Made([which("nginx"), "-p", str(folder), "-c", str(folder / "nginx.conf")], state)


def python_source(folder: Path, name: str, source: str) -> None:
    """`name` with `source`, beside items.py."""
    (folder / "items.py").write_text(sources.PYTHON_ITEMS)
    (folder / name).write_text(source)
