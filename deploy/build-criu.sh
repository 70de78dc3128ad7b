#!/usr/bin/env bash
# Builds CRIU 4.2 or newer into build/criu/criu from Debian unstable's source archive (Debian 12's 3.17 cannot run on
# kernels with the newer vDSO layout). Only `medes bench restore` uses it, as a baseline. Needs root for build packages.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$PWD/build/criu
[ -x "$out/criu" ] && { "$out/criu" --version | head -1; exit 0; }
[ "$(id -u)" -eq 0 ] || { echo "run as root: installs the packages CRIU builds with" >&2; exit 1; }

work=$out/source
mkdir -p "$work" "$out/apt/parts" "$out/apt/lists/partial"
echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian unstable main" >"$out/apt/sources.list"
cat >"$out/apt/apt.conf" <<CONF
Dir::Etc::sourcelist "$out/apt/sources.list";
Dir::Etc::sourceparts "$out/apt/parts";
Dir::State::lists "$out/apt/lists";
APT::Sandbox::User "root";
CONF
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends dpkg-dev libprotobuf-c-dev protobuf-c-compiler \
  protobuf-compiler libprotobuf-dev libcap-dev libnet1-dev libbsd-dev libnftables-dev libaio-dev libnl-3-dev libgnutls28-dev \
  uuid-dev pkg-config >/dev/null
(
  cd "$work"
  export APT_CONFIG=$out/apt/apt.conf
  apt-get update -qq
  # --tar-only: the distribution's own patches are not needed, and its packaging archive may already have moved on.
  apt-get source -qq --download-only --tar-only criu
)
tar -C "$work" --strip-components=1 -xf "$work"/criu_*.orig.tar.*
make -C "$work" -j"$(nproc)" criu >"$out/build.log" 2>&1 || { tail -20 "$out/build.log" >&2; exit 1; }
cp "$work/criu/criu" "$out/criu"
"$out/criu" --version | head -1
