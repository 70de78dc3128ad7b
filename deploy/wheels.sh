#!/usr/bin/env bash
# Builds the wheels of medes and medes-client into OUT, with build tools of their own (from the package index).
set -euo pipefail
out=${1:?usage: wheels.sh OUT}
cd "$(dirname "$0")/.."
# Theirs are the places of the installation; CMake would stage the build's own steps there.
unset DESTDIR PREFIX
# The system's interpreter where it will do: one in somebody's home is out of the daemons' reach.
python=${PYTHON:-/usr/bin/python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  { echo "Python 3.11 or newer is needed; name one: make ... PYTHON=/path/to/python3" >&2; exit 1; }
tools=build/wheel-tools
[ "$("$tools/bin/python" -c 'import sys; print(sys._base_executable)' 2>/dev/null)" = "$(readlink -f "$python")" ] ||
  "$python" -m venv --clear "$tools"
rm -rf "$out"
mkdir -p "$out"
"$tools/bin/pip" wheel -q --no-deps --wheel-dir "$out" ./deploy/client
# A build folder of its own: that of the editable installation knows other paths.
"$tools/bin/pip" wheel -q --no-deps --wheel-dir "$out" --config-settings=build-dir=build/wheel .
ls "$out"
