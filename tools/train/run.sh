#!/bin/sh
# Trains the demo adapters of examples/adapters and compresses those that are large.
# Usage: run.sh [OUT [FOLDER…]]   (default: examples/adapters, and all of them; the folders of OUT with these names are replaced)
# The Python environment is the oracle's (tools/oracle/run.sh says where it lies).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
out=${1:-$root/examples/adapters}
[ $# -gt 0 ] && shift
python=$("$root/tools/oracle/run.sh" venv)
trained=$(mktemp -d)
trap 'rm -rf "$trained"' EXIT
# The command line refuses variables that begin so and are none of its options.
unset MANYFOLD_ORACLE_VENV

# Ten megabytes as trained; at this density the effect stays (tools/train/README.md).
names=
for name in "$@"; do
  [ "$name" = pirate-compeft ] && name=pirate-lora
  names="$names $name"
done
# shellcheck disable=SC2086
OMP_WAIT_POLICY=passive TQDM_DISABLE=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 \
  "$python" -W ignore "$here/train.py" "$trained" $names
if [ -d "$trained/pirate-lora" ]; then
  (cd "$root" && node scripts/manyfold.mjs adapters compress "$trained/pirate-lora" --density 0.2 --alpha 2 \
    --out "$trained/pirate-compeft")
  rm -rf "$trained/pirate-lora"
fi

mkdir -p "$out"
for folder in "$trained"/*; do
  rm -rf "$out/$(basename "$folder")"
  cp -R "$folder" "$out/"
done
