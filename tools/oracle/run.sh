#!/bin/sh
# The oracle's runner. `run.sh generate [PART…]` writes test/goldens; `run.sh check [PART…]` writes them to a temporary folder
# and compares with the committed ones; `run.sh venv` only prepares the Python environment and prints its interpreter.
# Parts: models, gguf, terms, blocks, kinds, s2ft, text, smollm2 (all of them when none is named).
# ORACLE_KINDS: groups of kinds to make (kinds_lora, kinds_scale, …; all when it is not set).
# MANYFOLD_ORACLE_VENV: where the environment lies (default: tools/oracle/.venv). PYTHON: the interpreter that makes it.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
venv=${MANYFOLD_ORACLE_VENV:-$here/.venv}
stamp=$venv/requirements.stamp

prepare() {
  if [ -f "$stamp" ] && cmp -s "$stamp" "$here/requirements.txt"; then return; fi
  rm -f "$stamp"
  [ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
  # torch alone and first: the packages after it must find it and leave it as it is.
  "$venv/bin/pip" install --quiet "$(grep '^torch==' "$here/requirements.txt")"
  "$venv/bin/pip" install --quiet -r "$here/requirements.txt"
  cp "$here/requirements.txt" "$stamp"
}

generate() {
  OMP_WAIT_POLICY=passive TQDM_DISABLE=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 \
    "$venv/bin/python" -W ignore "$here/generate.py" "$@"
}

mode=${1:-}
[ $# -gt 0 ] && shift
case $mode in
  venv)
    prepare
    echo "$venv/bin/python"
    ;;
  generate)
    prepare
    generate "$root/test/goldens" "$@"
    ;;
  check)
    prepare
    out=$(mktemp -d)
    trap 'rm -rf "$out"' EXIT
    generate "$out" "$@"
    "$venv/bin/python" "$here/compare.py" "$root/test/goldens" "$out"
    ;;
  *)
    echo "usage: $0 generate|check [models|gguf|terms|blocks|kinds|s2ft|text|smollm2]… or $0 venv" >&2
    exit 2
    ;;
esac
