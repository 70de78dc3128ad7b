#!/usr/bin/env bash
# Installs the Debian packages that build and demo need (as root), or names the missing ones; with the argument
# `test` also what only tests and benchmarks use.
set -euo pipefail

required=(g++ ninja-build pkg-config libzstd-dev libxxhash-dev libssl-dev libibverbs-dev libgtest-dev python3-dev python3-venv)
# A machine without these still builds and runs; what needs them is skipped and says so.
optional=(ccache python3-pyverbs rdma-core ibverbs-providers)
test_only=(systemd libseccomp2 clang libclang-rt-14-dev redis-server runc crun gdb strace ibverbs-utils perftest qemu-system-x86
  busybox-static linux-image-amd64 golang-go nodejs default-jdk-headless nginx-light postgresql)
[ "${1:-}" != test ] || optional+=("${test_only[@]}")

missing() {
  local package
  for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || echo "$package"
  done
}

if ! command -v dpkg-query >/dev/null; then
  echo "not a Debian system: install the equivalents of: ${required[*]}" >&2
  exit 0
fi
mapfile -t need < <(missing "${required[@]}")
mapfile -t want < <(missing "${optional[@]}")
if [ $((${#need[@]} + ${#want[@]})) -eq 0 ]; then
  exit 0
fi
if [ "$(id -u)" -ne 0 ]; then
  echo "missing Debian packages; run: apt-get install ${need[*]} ${want[*]}" >&2
  [ ${#need[@]} -eq 0 ] || exit 1
  exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
[ ${#need[@]} -eq 0 ] || apt-get install -y -qq --no-install-recommends "${need[@]}"
for package in "${want[@]}"; do
  apt-get install -y -qq --no-install-recommends "$package" >/dev/null || echo "optional package $package cannot be installed here" >&2
done
