#!/usr/bin/env bash
# Builds and runs the native tests: plain, under address+undefined sanitizers, under the thread sanitizer,
# then with clang each fuzz target: its corpus, and FUZZ_SECONDS (default 5) of random inputs. Prints one summary
# line per variant. For many executions of the targets: tests/fuzz.sh.
set -euo pipefail
shopt -s nullglob
cd "$(dirname "$0")/.."

jobs=$(nproc)
fuzz_seconds=${FUZZ_SECONDS:-5}
mkdir -p build

run_variant() { # name, sanitizers, command prefix...
  local name=$1 sanitize=$2 dir=build/native-$1
  shift 2
  cmake -S native -B "$dir" -G Ninja -DMEDES_TESTS=ON -DMEDES_FUZZ="${FUZZ:-OFF}" -DMEDES_SANITIZE="$sanitize" \
    -DCMAKE_BUILD_TYPE="$([ -n "$sanitize" ] && echo Sanitized || echo Release)" >/dev/null
  ninja -C "$dir" -j "$jobs" >"$dir/build.out" 2>&1 || { tail -40 "$dir/build.out"; return 1; }
  "$@" "$dir/medes_tests" --gtest_brief=1 >"$dir/test.out" 2>&1 || { tail -60 "$dir/test.out"; return 1; }
  printf 'native %-18s %s, %s skipped\n' "$name" \
    "$(grep -oE '[0-9]+ tests? from [0-9]+ test suites? ran' "$dir/test.out" | tail -1)" \
    "$(grep -cE '^\[  SKIPPED \].*\([0-9]+ ms\)' "$dir/test.out" || true)"
}

export ASAN_OPTIONS=detect_leaks=1:strict_string_checks=1:detect_stack_use_after_return=1
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1

run_variant plain ""
# Newer kernels place mappings where GCC 12's thread sanitizer cannot have them; without ASLR they fit.
run_variant thread thread setarch "$(uname -m)" -R
if ! command -v clang++ >/dev/null; then
  run_variant address-undefined address,undefined
  echo 'fuzz targets skipped: clang++ is not installed'
  exit 0
fi
# The tests and the fuzz targets share one build of the core.
dir=build/native-address-undefined
CXX=clang++ FUZZ=ON run_variant address-undefined address,undefined,fuzzer-no-link
for source in native/fuzz/fuzz_*.cc; do
  name=$(basename "$source" .cc)
  rm -rf "$dir/seeds-$name"
  mkdir -p "$dir/corpus-$name"
  inputs=$(python3 tests/support/fuzz_corpus.py unpack "native/fuzz/corpus/${name#fuzz_}.hex" "$dir/seeds-$name")
  length=$(awk -v t="${name#fuzz_}" '$1 == t {print $2}' native/fuzz/lengths.txt)
  { "$dir/$name" -runs=0 "$dir/seeds-$name" && "$dir/$name" -max_total_time="$fuzz_seconds" -max_len="$length" \
    -rss_limit_mb=2048 -timeout=10 "$dir/corpus-$name" "$dir/seeds-$name"; } >"$dir/$name.out" 2>&1 \
    || { tail -40 "$dir/$name.out"; exit 1; }
  printf 'fuzz   %-30s corpus of %s, %s\n' "$name" "$inputs" \
    "$(grep -oE 'Done [0-9]+ runs in [0-9]+ second' "$dir/$name.out" | tail -1)"
done
