#!/usr/bin/env bash
# install: the wheels of DIST into PREFIX/lib/medes, the command, the systemd units and the settings.
# uninstall: all of it but changed settings and what the agent keeps.
# PREFIX is where it will run, DESTDIR a root that packagers stage into, UNITDIR and SYSCONFDIR where systemd and the
# units look. EXTRAS are the extras of medes to install, PYTHON the interpreter that the wheels were built with.
set -euo pipefail
cd "$(dirname "$0")/.."
PREFIX=${PREFIX:-/usr/local} DESTDIR=${DESTDIR:-}
UNITDIR=${UNITDIR:-/etc/systemd/system} SYSCONFDIR=${SYSCONFDIR:-/etc}
home=$PREFIX/lib/medes
settings=$DESTDIR$SYSCONFDIR/medes
units=(medes-agent.service medes-controller.service)

fail() { echo "medes: $*" >&2; exit 1; }

for path in "$PREFIX" "$UNITDIR" "$SYSCONFDIR" ${DESTDIR:+"$DESTDIR"}; do
  [[ $path == /* && $path != *[[:space:]]* ]] || fail "PREFIX, DESTDIR, UNITDIR and SYSCONFDIR are absolute paths without spaces: $path"
done

# The running systemd, where this is about this machine and not about a staged root.
on_systemd() { [ -z "$DESTDIR" ] && [ -d /run/systemd/system ]; }

unit() { sed "s|/usr/local/bin/medes|$PREFIX/bin/medes|; s|/etc/medes/|$SYSCONFDIR/medes/|g" "deploy/systemd/$1"; }

install_() {
  local dist=${DIST:?} python base stage
  python=${PYTHON:-/usr/bin/python3}
  base=$(readlink -f "$(command -v "$python")")
  case $base in
    /root/* | /home/*) fail "the units cannot reach $base (ProtectHome): PYTHON=/usr/bin/python3 make install" ;;
  esac
  mkdir -p "$DESTDIR$PREFIX/lib" "$DESTDIR$PREFIX/bin" "$DESTDIR$UNITDIR"
  # Made beside its place and moved there whole: an agent that runs from the old one is not disturbed by half a new one.
  stage=$(mktemp -d "$DESTDIR$PREFIX/lib/.medes-XXXXXX")
  trap 'rm -rf "$stage"' EXIT
  chmod 755 "$stage"
  "$base" -m venv "$stage"
  local extras=${EXTRAS:+[$EXTRAS]}
  "$stage/bin/pip" install -q --no-compile "$dist"/medes_client-*.whl "$(echo "$dist"/medes-*.whl)$extras"
  # Scripts name the interpreter by its path: the final one.
  grep -rlIF "$stage" "$stage/bin" "$stage/pyvenv.cfg" | xargs sed -i "s|$stage|$home|g"
  "$stage/bin/python" -m compileall -q -f -s "$stage" -p "$home" "$stage/lib" || true
  rm -rf "$DESTDIR$home.old"
  [ ! -e "$DESTDIR$home" ] || mv "$DESTDIR$home" "$DESTDIR$home.old"
  mv "$stage" "$DESTDIR$home"
  trap - EXIT
  rm -rf "$DESTDIR$home.old"
  ln -sfn ../lib/medes/bin/medes "$DESTDIR$PREFIX/bin/medes"
  for name in "${units[@]}"; do
    unit "$name" | install -m 644 /dev/stdin "$DESTDIR$UNITDIR/$name"
  done
  # Passwords of stores and paths of keys are root's: the controller is given what it needs by its unit.
  install -d -m 755 "$settings"
  install -d -m 700 "$settings/tls"
  if [ -e "$settings/medes.toml" ]; then
    echo "settings left as they are: $settings/medes.toml"
  else
    install -m 600 deploy/medes.toml "$settings/medes.toml"
  fi
  if on_systemd; then systemctl daemon-reload; fi
  echo "installed: $PREFIX/bin/medes, units in $UNITDIR, settings in $SYSCONFDIR/medes"
  [ -n "$DESTDIR" ] || echo "next: systemctl enable --now medes-controller medes-agent (after an upgrade: systemctl restart)"
}

# Files of dedup'd sandboxes, by the settings of this machine's agent.
kept_files() {
  [ -z "$DESTDIR" ] && [ -x "$home/bin/python" ] || return 0
  "$home/bin/python" - "$settings/medes.toml" <<'PY'
import sys
from pathlib import Path
from medes.config import AgentSettings, load
from medes.errors import MedesError
file = Path(sys.argv[1])
try:
    folder = load(AgentSettings, file if file.exists() else None, {}).shm_path
except MedesError as error:
    sys.exit(f"medes: {error}: cannot tell where the agent's files lie")
for path in folder.glob("sandbox-*"):
    print(path)
PY
}

uninstall() {
  local kept
  kept=$(kept_files) || [ -n "${FORCE:-}" ] || fail "not uninstalled (FORCE=1 does it all the same)"
  if [ -n "$kept" ] && [ -z "${FORCE:-}" ]; then
    echo "$kept" >&2
    fail "these hold the memory of sandboxes that only an agent can wake: drain the node first (deploy/README.md), or FORCE=1"
  fi
  if on_systemd; then systemctl disable --now "${units[@]}" || true; fi
  for name in "${units[@]}"; do rm -f "$DESTDIR$UNITDIR/$name"; done
  rm -f "$DESTDIR$PREFIX/bin/medes"
  rm -rf "$DESTDIR$home"
  if cmp -s deploy/medes.toml "$settings/medes.toml"; then rm -f "$settings/medes.toml"; fi
  rmdir --ignore-fail-on-non-empty "$settings/tls" "$settings" 2>/dev/null || true
  if on_systemd; then systemctl daemon-reload; fi
  echo "uninstalled from $PREFIX"
  [ ! -e "$settings" ] || echo "left: $settings (your settings and certificates)"
  [ -n "$DESTDIR" ] || echo "left, if the agent ran here: /var/lib/medes (journal) and /dev/shm/medes-* (base pages)"
}

case ${1:-} in
  install) install_ ;;
  uninstall) uninstall ;;
  *) fail "usage: install.sh install|uninstall" ;;
esac
