#!/bin/sh
# lm-evaluation-harness against our server: starts `manyfold serve` in float32 on a loopback port, scores the task of
# lm_eval_task through /v1/completions and by transformers on the same weights, compares, and stops the server.
# Usage: run_lm_eval.sh [MODEL]   (a GGUF file or folder; default: the default model, which is fetched if need be)
# MANYFOLD_LMEVAL_VENV: where the environment lies (default: .cache/oracle-lmeval). PYTHON: what makes it.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
venv=${MANYFOLD_LMEVAL_VENV:-$root/.cache/oracle-lmeval}
stamp=$venv/requirements.stamp
# The server refuses variables that begin so and are none of its options.
unset MANYFOLD_LMEVAL_VENV MANYFOLD_ORACLE_VENV

if ! [ -f "$stamp" ] || ! cat "$here/requirements.txt" "$here/requirements-lmeval.txt" | cmp -s "$stamp" -; then
  rm -f "$stamp"
  [ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
  # torch alone and first; the constraints keep it.
  "$venv/bin/pip" install --quiet "$(grep '^torch==' "$here/requirements.txt")"
  "$venv/bin/pip" install --quiet -c "$here/requirements.txt" -r "$here/requirements-lmeval.txt" transformers
  cat "$here/requirements.txt" "$here/requirements-lmeval.txt" >"$stamp"
fi

cd "$root"
if [ $# -gt 0 ]; then model=$1; else model=$(node scripts/manyfold.mjs pull); fi
port=$("$venv/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
log=$(mktemp)
node scripts/manyfold.mjs serve --model "$model" --dtype f32 --port "$port" >"$log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; rm -f "$log"' EXIT

tries=0
until node -e "fetch('http://127.0.0.1:$port/readyz').then((r) => process.exit(r.ok ? 0 : 1), () => process.exit(1))"; do
  tries=$((tries + 1))
  if [ "$tries" -gt 240 ] || ! kill -0 "$server" 2>/dev/null; then
    echo "the server did not become ready:" >&2
    cat "$log" >&2
    exit 1
  fi
  sleep 0.5
done
"$venv/bin/python" -W ignore "$here/lm_eval_check.py" "$model" "http://127.0.0.1:$port" || {
  tail -n 20 "$log" >&2
  exit 1
}
