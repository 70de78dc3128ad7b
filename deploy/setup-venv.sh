#!/usr/bin/env bash
# Makes the virtual environment: build tools, run-time dependencies, test tools, and Debian's pyverbs if present.
set -euo pipefail
venv=${1:?usage: setup-venv.sh DIR}
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed" >&2; exit 1; }
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/python" - <<'PY' >"$venv/requirements.txt"
import tomllib
wanted = []
for file in ("pyproject.toml", "deploy/client/pyproject.toml"):
    project = tomllib.load(open(file, "rb"))
    wanted += project["build-system"]["requires"] + project["project"]["dependencies"]
    extras = project["project"].get("optional-dependencies", {})
    for extra in ("redis", "functions", "bench", "dev"):
        wanted += extras.get(extra, [])
print("\n".join(w for w in wanted if not w.startswith("medes-client")))  # built from here
PY
"$venv/bin/pip" install -q -r "$venv/requirements.txt" ninja
# Debian's pyverbs works in any CPython of the same version: name a folder that holds only it.
if [ -d /usr/lib/python3/dist-packages/pyverbs ]; then
  site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
  mkdir -p "$venv/pyverbs"
  ln -sfn /usr/lib/python3/dist-packages/pyverbs "$venv/pyverbs/pyverbs"
  (cd "$venv/pyverbs" && pwd) >"$site/medes-pyverbs.pth"
fi
