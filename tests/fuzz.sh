#!/usr/bin/env bash
# Fuzzes with many executions: the targets named (default: all) in turn, FUZZ_SLICE_SECONDS (default 60) each, until each
# has had FUZZ_EXECUTIONS (default 10^8) in all. What was executed is added up in build/native-fuzz-fast/executions, so
# it may be stopped and started again at any time. With `merge` first: writes native/fuzz/corpus anew from what was found.
#
# Built for speed: of the sanitizers only the undefined one, and no tracing of comparisons. tests/native.sh has the others.
set -euo pipefail
cd "$(dirname "$0")/.."

dir=build/native-fuzz-fast
total=${FUZZ_EXECUTIONS:-100000000}
slice=${FUZZ_SLICE_SECONDS:-60}
merge=
if [ "${1:-}" = merge ]; then merge=yes && shift; fi
if [ $# -gt 0 ]; then targets=("$@"); else mapfile -t targets < <(awk '{print $1}' native/fuzz/lengths.txt); fi

export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
mkdir -p "$dir"
CXX=clang++ CXXFLAGS='-fno-sanitize-coverage=trace-cmp,indirect-calls' cmake -S native -B "$dir" -G Ninja -DMEDES_FUZZ=ON \
  -DMEDES_SANITIZE=undefined,fuzzer-no-link -DCMAKE_BUILD_TYPE=Release >/dev/null
ninja -C "$dir" "${targets[@]/#/fuzz_}" >"$dir/build.out" 2>&1 || { tail -40 "$dir/build.out"; exit 1; }
touch "$dir/executions"

executed() { awk -v t="$1" '$1 == t {n += $2} END {print n + 0}' "$dir/executions"; }

one_slice() { # target, executions left
  local out="$dir/fuzz_$1.out" length status=0 corpus="$dir/corpus-$1"
  length=$(awk -v t="$1" '$1 == t {print $2}' native/fuzz/lengths.txt)
  mkdir -p "$corpus"
  [ -n "$(ls -A "$corpus")" ] || python3 tests/support/fuzz_corpus.py unpack "native/fuzz/corpus/$1.hex" "$corpus" >/dev/null
  "$dir/fuzz_$1" -runs="$2" -max_total_time="$slice" -max_len="$length" -entropic=0 -reduce_inputs=0 -print_final_stats=1 \
    -timeout=60 -rss_limit_mb=2048 -artifact_prefix="$dir/found-$1-" "$corpus" >"$out" 2>&1 || status=$?
  echo "$1 $(grep -oE 'number_of_executed_units: [0-9]+' "$out" | grep -oE '[0-9]+$' || echo 0)" >>"$dir/executions"
  [ "$status" = 0 ] || { tail -40 "$out"; exit 1; }
}

if [ -n "$merge" ]; then
  for target in "${targets[@]}"; do
    rm -rf "$dir/merged" && mkdir -p "$dir/merged" "$dir/corpus-$target"
    # Inputs that cover the most go first; how often a place was reached does not count.
    "$dir/fuzz_$target" -set_cover_merge=1 -use_counters=0 "$dir/merged" "$dir/corpus-$target" >"$dir/merge.out" 2>&1
    python3 tests/support/fuzz_corpus.py pack "$dir/merged" "native/fuzz/corpus/$target.hex"
  done
  exit
fi
going=yes
while [ -n "$going" ]; do
  going=
  for target in "${targets[@]}"; do
    left=$((total - $(executed "$target")))
    if [ "$left" -gt 0 ]; then going=yes && one_slice "$target" "$left"; fi
  done
done
for target in "${targets[@]}"; do printf '%-20s %s executions\n' "$target" "$(executed "$target")"; done
