#!/usr/bin/env bash
# Build fastmem._cpu with AddressSanitizer and UndefinedBehaviorSanitizer in a folder of its own and run the operator
# tests on it:  tools/sanitize.sh VENV [PYTEST OPTIONS]
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$(cd "$1" && pwd)
shift

PATH="$venv/bin:$PATH" FASTMEM_SANITIZE=ON FASTMEM_CUDA=OFF "$venv/bin/python" -m pip --disable-pip-version-check install \
  --quiet --no-build-isolation --no-deps --target build/sanitized --upgrade -Cbuild-dir=build/sanitize .

# Python itself is not instrumented: the runtimes are loaded first, and its own leaks are not ours to report.
runtimes=$(g++ -print-file-name=libasan.so):$(g++ -print-file-name=libubsan.so):$(g++ -print-file-name=libstdc++.so)
env LD_PRELOAD="$runtimes" ASAN_OPTIONS=detect_leaks=0:halt_on_error=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
  PYTHONPATH=build/sanitized FASTMEM_SANITIZED=1 \
  "$venv/bin/python" -m pytest -p no:cacheprovider -q tests/ops --deselect-compile "$@"
