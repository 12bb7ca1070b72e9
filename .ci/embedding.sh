#!/usr/bin/env bash
# Fetches a small sentence embedding from PyPI: 32,000 subwords of Llama 2 with 256 dimensions each (wordllama, MIT).
#
#   .ci/embedding.sh [DIR]
#
# DIR defaults to ${XDG_CACHE_HOME:-~/.cache}/erhpc/embedding-wordllama-0.4.0. $PYTHON names an interpreter with pip.
# Nothing is installed: the 19 MB wheel is only a box for two files, whose hashes are checked. The last line printed is
# DIR, to be given as embedding=DIR or router.embedding=DIR. A second run finds the work done.
set -euo pipefail

wheel="wordllama==0.4.0.post1"
folder="${1:-${XDG_CACHE_HOME:-$HOME/.cache}/erhpc/embedding-wordllama-0.4.0}"

is_complete() {
  (cd "$1" 2> /dev/null && sha256sum --quiet --check - 2> /dev/null > /dev/null) << 'END'
93248f2a9ec36c7b35f700a033d5f36228aae48db61aee31007fa49062cdeb68  tokenizer.json
64b47a2dc493cb8e85944076601189739852d7b64e0e1eedcb1937a251cd9fd5  model.safetensors
END
}

fetch() {
  local python scratch
  python="${PYTHON:-$(command -v python3.11 || echo python3)}"
  scratch="$(mktemp -d "$folder.XXXXXX")"
  # shellcheck disable=SC2064 # the folder of now is meant
  trap "rm -rf '$scratch'" EXIT
  # Any platform's wheel has the same two files.
  "$python" -m pip download -qq --disable-pip-version-check --no-deps --only-binary :all: --python-version 3.11 \
    --platform manylinux2014_x86_64 --dest "$scratch" "$wheel"
  "$python" -m zipfile --extract "$scratch"/wordllama-*.whl "$scratch/wheel"
  mkdir "$scratch/embedding"
  mv "$scratch/wheel/wordllama/tokenizers/l2_supercat_tokenizer_config.json" "$scratch/embedding/tokenizer.json"
  mv "$scratch/wheel/wordllama/weights/l2_supercat_256.safetensors" "$scratch/embedding/model.safetensors"
  if ! is_complete "$scratch/embedding"; then
    echo "$wheel does not hold the files that were expected of it." >&2
    return 1
  fi
  # Another fetch may have come first.
  mv -T "$scratch/embedding" "$folder" 2> /dev/null || is_complete "$folder"
}

mkdir -p "$(dirname "$folder")"
if ! is_complete "$folder"; then
  if [[ -e "$folder" ]]; then
    echo "$folder holds something else than this embedding. Name an empty or new folder." >&2
    exit 1
  fi
  fetch
fi
echo "$folder"
