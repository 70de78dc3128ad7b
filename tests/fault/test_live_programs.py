"""Sandboxes that are not Python: Node.js, Go, Java, a prefork server, a container. Each answers by its state."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from medes import native
from tests.support.live import Deduper, Program

pytestmark = pytest.mark.live
WAIT_S = 60.0


@pytest.fixture
def deduper(tmp_path: Path) -> Iterator[Deduper]:
    deduper = Deduper(tmp_path)
    yield deduper
    deduper.close()


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


def _container_pids(state: Path, name: str, runc: str) -> list[int]:
    out = subprocess.run(
        [runc, "--root", str(state), "ps", "-f", "json", name], capture_output=True, check=True
    )
    return list(json.loads(out.stdout))


def test_a_container(deduper: Deduper, tmp_path: Path) -> None:
    """Started by runc in pid, mount and user-visible namespaces of its own, with a seccomp profile."""
    runc = _need("runc")
    unshare = _need("unshare")
    bundle, state, root = tmp_path / "bundle", tmp_path / "state", tmp_path / "root"
    for folder in (bundle, state, root):
        folder.mkdir()
    name = f"medes-test-{os.getpid()}"
    subprocess.run([runc, "spec"], cwd=bundle, check=True)
    spec = json.loads((bundle / "config.json").read_text())
    spec["root"] = {"path": str(root), "readonly": True}
    spec["process"]["terminal"] = False
    spec["process"]["args"] = [sys.executable, "-c", PREFORK]
    # As container engines do: userfaultfd is refused inside. The driver asks the kernel to look away.
    spec["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["userfaultfd", "ptrace"], "action": "SCMP_ACT_ERRNO"}],
    }
    (bundle / "config.json").write_text(json.dumps(spec))
    script = f"mount --rbind / {root} && exec {runc} --root {state} run --bundle {bundle} {name}"
    command = [unshare, "-m", "--propagation", "private", "sh", "-c", script]
    try:
        program = Program(command)
    except AssertionError:
        pytest.skip("runc cannot start a container here")
    with program:
        try:
            pids = sorted(_container_pids(state, name, runc))
            assert len(pids) == 4
            expected = program.ask("ask")
            before = native.private_bytes(pids)
            live = deduper.dedup(pids)
            assert live.evict_result["processes"] == 4
            assert native.private_bytes(pids) < before
            assert program.ask("ask") == expected
            assert live.wait_complete(WAIT_S)
        finally:
            subprocess.run([runc, "--root", str(state), "kill", name, "KILL"], check=False)
