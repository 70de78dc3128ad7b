"""Sandboxes that are not Python alone: Node.js, Go, Java, prefork servers. Each answers by its state."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from medes import native
from tests.support.live import Deduper, Program

pytestmark = pytest.mark.live
WAIT_S = 60.0


def _need(*names: str) -> str:
    for name in names:
        if path := shutil.which(name):
            return path
    pytest.skip(f"{names[0]} is not installed")


def _rounds(deduper: Deduper, program: Program, rounds: int = 4) -> None:
    """Dedup and restore by touch, lazily and eagerly; every answer must be the one before."""
    expected = program.ask("ask")
    for number in range(rounds):
        live = deduper.dedup(native.process_tree([program.pid]))
        assert live.evict_result["evicted_pages"] > live.evict_result["resident_pages"]
        if number % 2:
            live.restore(lazy=number % 4 == 1)
        assert program.ask("ask") == expected
        assert live.wait_complete(WAIT_S)
        assert program.ask("ask") == expected


NODE = """
const crypto = require('crypto');
const blocks = [];
for (let i = 0; i < 3000; i++) blocks.push(crypto.createHash('sha256').update(String(i)).digest('hex').repeat(20));
let n = 0;
setInterval(() => { n++; }, 3600000);
require('readline').createInterface({input: process.stdin}).on('line', () => {
  console.log('1 ' + crypto.createHash('sha256').update(blocks.join('')).digest('hex'));
});
console.log('ready');
"""


def test_node(deduper: Deduper) -> None:
    with Program([_need("node", "nodejs"), "-e", NODE]) as program:
        _rounds(deduper, program)


GO = """
package main

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"os"
	"runtime"
	"sync"
)

func main() {
	blocks := make([][]byte, 4000)
	for i := range blocks {
		sum := sha256.Sum256([]byte(fmt.Sprint(i)))
		for j := 0; j < 64; j++ {
			blocks[i] = append(blocks[i], sum[:]...)
		}
	}
	fmt.Println("ready")
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		sums := make([][32]byte, 8)
		var group sync.WaitGroup
		for w := range sums {
			group.Add(1)
			go func(w int) {
				defer group.Done()
				h := sha256.New()
				for i := w; i < len(blocks); i += len(sums) {
					h.Write(append([]byte(nil), blocks[i]...))
				}
				copy(sums[w][:], h.Sum(nil))
			}(w)
		}
		group.Wait()
		runtime.GC()
		fmt.Printf("1 %x\\n", sha256.Sum256([]byte(fmt.Sprint(sums))))
	}
}
"""


def test_go(deduper: Deduper, tmp_path: Path) -> None:
    go = _need("go")
    (tmp_path / "main.go").write_text(GO)
    environment = {
        **os.environ,
        "GOCACHE": str(tmp_path / "cache"),
        "GOFLAGS": "-mod=mod",
        "GO111MODULE": "off",
    }
    subprocess.run([go, "build", "-o", "sandbox", "main.go"], cwd=tmp_path, env=environment, check=True)
    with Program([str(tmp_path / "sandbox")]) as program:
        _rounds(deduper, program)


JAVA = """
import java.io.*;
import java.security.*;
import java.util.*;

public class Sandbox {
  public static void main(String[] a) throws Exception {
    List<byte[]> blocks = new ArrayList<>();
    for (int i = 0; i < 3000; i++)
      blocks.add(MessageDigest.getInstance("SHA-256").digest(("" + i).repeat(50).getBytes()));
    System.out.println("ready");
    BufferedReader in = new BufferedReader(new InputStreamReader(System.in));
    while (in.readLine() != null) {
      MessageDigest all = MessageDigest.getInstance("SHA-256");
      for (byte[] b : blocks) all.update(b);
      System.out.println("1 " + new java.math.BigInteger(1, all.digest()).toString(16));
    }
  }
}
"""


def test_java(deduper: Deduper, tmp_path: Path) -> None:
    java, javac = _need("java"), _need("javac")
    (tmp_path / "Sandbox.java").write_text(JAVA)
    subprocess.run([javac, "Sandbox.java"], cwd=tmp_path, check=True)
    with Program([java, "-Xmx64m", "-cp", str(tmp_path), "Sandbox"]) as program:
        _rounds(deduper, program, 3)


PREFORK = """
import hashlib, os, sys
data = [hashlib.sha256(str(i).encode()).digest() * 40 for i in range(3000)]
pairs = []
for worker in range(3):
    down, up = os.pipe(), os.pipe()
    if os.fork() == 0:
        for end in (down[1], *[d for d, _ in pairs]):
            os.close(end)  # else no worker would see its parent go
        while os.read(down[0], 1):
            os.write(up[1], hashlib.sha256(b"".join(data)).hexdigest().encode())
        os._exit(0)
    pairs.append((down[1], up[0]))
print("ready", flush=True)
for n, line in enumerate(sys.stdin):
    for down, _ in pairs:
        os.write(down, b"x")
    print(n, *[os.read(up, 64).decode() for _, up in pairs], flush=True)
"""


def test_a_prefork_server(deduper: Deduper) -> None:
    with Program([sys.executable, "-c", PREFORK]) as program:
        assert len(native.process_tree([program.pid])) == 4
        _rounds(deduper, program)


SHARED = """
import ctypes, hashlib, mmap, os, sys
shared = mmap.mmap(-1, 1 << 20)
memfd = os.memfd_create("medes-test")
os.truncate(memfd, 1 << 20)
mapped = mmap.mmap(memfd, 1 << 20)
private = bytearray(os.urandom(1 << 20))
for memory in (shared, mapped):
    memory[:] = bytes(private)
print("ready", flush=True)
for n, line in enumerate(sys.stdin):
    print(n, bytes(shared) == bytes(mapped) == bytes(private), flush=True)
"""


def test_shared_memory_and_memfd_stay_intact(deduper: Deduper) -> None:
    with Program([sys.executable, "-c", SHARED]) as program:
        assert program.ask("ask") == "True"
        _rounds(deduper, program, 2)


GUNICORN_APP = """
import hashlib, os
data = [hashlib.sha256(str(i).encode()).digest() * 40 for i in range(3000)]
def app(environ, start_response):
    body = f"{os.getpid()} {hashlib.sha256(b''.join(data)).hexdigest()}".encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


def _get(port: int) -> tuple[int, str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=WAIT_S) as answer:
        pid, digest = answer.read().decode().split()
    return int(pid), digest


def _gunicorn_answers(port: int, workers: set[int]) -> set[str]:
    """Digests of all workers; asks until each has answered."""
    digests, seen = set(), set[int]()
    deadline_s = time.monotonic() + WAIT_S
    while seen != workers:
        assert time.monotonic() < deadline_s, f"only {seen} of {workers} answered"
        with ThreadPoolExecutor(4) as pool:
            for pid, digest in pool.map(_get, [port] * 8):
                seen.add(pid)
                digests.add(digest)
    return digests


def test_gunicorn_with_workers(deduper: Deduper, tmp_path: Path) -> None:
    """A master that watches its workers by the clock, and workers that share a listening socket. No worker may be
    replaced: that it was asleep for a while is nothing to the master."""
    pytest.importorskip("gunicorn")
    (tmp_path / "gunicorn_app.py").write_text(GUNICORN_APP)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path / "gunicorn.log"
    command = [sys.executable, "-m", "gunicorn", "--workers", "3", "--bind", f"127.0.0.1:{port}"]
    command += [
        "--worker-tmp-dir",
        str(tmp_path),
        "--log-file",
        str(log),
        "--no-control-socket",
        "gunicorn_app:app",
    ]
    process = subprocess.Popen(command, cwd=tmp_path)
    try:
        deadline_s = time.monotonic() + WAIT_S
        while not log.exists() or log.read_text().count("Booting worker") < 3:
            assert time.monotonic() < deadline_s and process.poll() is None, log.read_text()
            time.sleep(0.05)
        pids = native.process_tree([process.pid])
        workers = set(pids) - {process.pid}
        assert len(workers) == 3
        expected = _gunicorn_answers(port, workers)
        assert len(expected) == 1
        for number in range(4):
            live = deduper.dedup(pids)
            assert live.evict_result["processes"] == 4
            assert live.evict_result["evicted_pages"] > live.evict_result["resident_pages"]
            if number % 2:
                live.restore(lazy=number == 1)
            assert _gunicorn_answers(port, workers) == expected
            # The master looks at its workers every second, so it wakes soon when nobody asks.
            live.restore()
            assert live.wait_complete(WAIT_S)
        assert set(native.process_tree([process.pid])) == set(pids)
    finally:
        process.terminate()
        process.wait(WAIT_S)
