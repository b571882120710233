#!/usr/bin/env bash
# Build fastmem._cpu with AddressSanitizer and UndefinedBehaviorSanitizer in a folder of its own and run the operator
# tests on it:  tools/sanitize.sh VENV [PYTEST OPTIONS]
#
# Left out is what does not enter that module (Triton, CUDA's arithmetic on the host), what brings a compiler of its own,
# and memory bounds, which do not hold under the sanitizers.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$(cd "$1" && pwd)
shift

PATH="$venv/bin:$PATH" FASTMEM_SANITIZE=ON FASTMEM_CUDA=OFF "$venv/bin/python" -m pip --disable-pip-version-check install \
  --quiet --no-build-isolation --no-deps --target build/sanitized --upgrade -Cbuild-dir=build/sanitize .

# Python itself is not instrumented: the runtimes are loaded first, and its own leaks are not ours to report. The editable
# install would come before the instrumented build, so its finder is taken out.
runtimes=$(g++ -print-file-name=libasan.so):$(g++ -print-file-name=libubsan.so):$(g++ -print-file-name=libstdc++.so)
env LD_PRELOAD="$runtimes" ASAN_OPTIONS=detect_leaks=0:halt_on_error=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
  PYTHONPATH=build/sanitized "$venv/bin/python" -P - -p no:cacheprovider -q tests/ops \
  --ignore-glob='*/test_triton_*' --ignore-glob='*/test_cuda_*' --ignore=tests/ops/test_kernel_math.py \
  -k "not triton and not cuda and not compile and not memory" "$@" <<'PYTHON'
import sys

sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__]

import pytest
from fastmem import _build_info, _cpu

assert _build_info.SANITIZED, _cpu.__file__
sys.exit(pytest.main(sys.argv[1:]))
PYTHON
