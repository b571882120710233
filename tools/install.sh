#!/usr/bin/env bash
# Set up the virtual environment and build fastmem into it.
#   tools/install.sh PYTHON VENV [EXTRAS]
# Without an NVIDIA GPU everything is pinned by constraints.txt, and the set-up stops rather than download the CUDA build
# of torch. With one, torch is taken as it is: an installed torch stays, otherwise the newest one is fetched.
set -euo pipefail
cd "$(dirname "$0")/.."

python=$1
venv=$2
extras=${3:-}

fail() {
  echo "fastmem set-up: $*" >&2
  exit 2
}

command -v "$python" >/dev/null || fail "no $python on this machine; install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.12"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  fail "$python is $("$python" --version); fastmem needs 3.11 or newer: make PYTHON=/path/to/python3.12"
command -v "${CXX:-g++}" >/dev/null || fail "no C++ compiler; install one (Debian, Ubuntu: apt install g++)"

gpu=no
if command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU; then gpu=yes; fi

if [ ! -x "$venv/bin/python" ]; then
  options=()
  # The machine's own CUDA build of torch is used as it is.
  if [ "$gpu" = yes ] && "$python" -c 'import torch, sys; sys.exit(torch.version.cuda is None)' 2>/dev/null; then
    options+=(--system-site-packages)
  fi
  "$python" -m venv "${options[@]}" "$venv" ||
    fail "$python cannot make a virtual environment; install its venv module (Debian, Ubuntu: apt install python3-venv)"
fi
pip=("$venv/bin/python" -m pip --disable-pip-version-check)

constraints=constraints.txt
if [ "$gpu" = yes ]; then
  constraints=$venv/constraints.txt
  grep -vE '^(torch|torchvision|triton|numpy)==' constraints.txt >"$constraints"
  if installed=$("$venv/bin/python" -c 'import torch; print(torch.__version__)' 2>/dev/null); then
    echo "torch==$installed" >>"$constraints"
  fi
elif ! "$venv/bin/python" -c 'import torch' 2>/dev/null; then
  # A pin alone does not keep the CUDA packages away: it is the package index that decides which build the pin names.
  plan=$("${pip[@]}" install --dry-run --quiet --report - -c constraints.txt torch torchvision) ||
    fail "the pinned torch cannot be resolved; see the message above"
  if heavy=$(grep -oE '"name": *"(nvidia-[a-z0-9-]+|cuda-[a-z-]+)"' <<<"$plan" | sort -u | head -3) && [ -n "$heavy" ]; then
    fail "this machine has no NVIDIA GPU, but the package index offers only the CUDA build of torch (gigabytes:" \
      "$(tr '\n' ' ' <<<"$heavy")...). Give pip the CPU wheels, as the install page of pytorch.org says for \"CPU\":" \
      "PIP_EXTRA_INDEX_URL=<that index> make ..., or set PIP_FIND_LINKS to a folder of wheels"
  fi
fi

echo "fastmem set-up: fetching the dependencies and compiling the kernels into $venv; this takes a few minutes"

# The build reuses its folder, so it needs its tools in the environment rather than in a throw-away one.
tools=(scikit-build-core pybind11)
command -v cmake >/dev/null || tools+=(cmake)
command -v ninja >/dev/null || tools+=(ninja)
"${pip[@]}" install --quiet -c "$constraints" "${tools[@]}"
PATH="$(cd "$venv/bin" && pwd):$PATH" "${pip[@]}" install --quiet --no-build-isolation -c "$constraints" -e ".${extras:+[$extras]}"

"$venv/bin/python" - "$gpu" <<'PYTHON'
import sys
import torch
import fastmem
from fastmem import _build_info, _cpu

if sys.argv[1] == "no" and torch.version.cuda is not None:
    print("note: this torch is a CUDA build, though no NVIDIA GPU was found")
print(f"fastmem {fastmem.__version__} on torch {torch.__version__}; CUDA kernels: {_build_info.CUDA_REASON}")
PYTHON
