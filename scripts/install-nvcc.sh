#!/usr/bin/env bash
# Puts nvcc and what a compilation needs into a folder, from NVIDIA's wheels on PyPI (Debian's nvidia-cuda-toolkit is too old for
# sm_90a and for GCC 12). usage: scripts/install-nvcc.sh FOLDER; then CUDACXX=FOLDER/nvcc
set -euo pipefail
folder=$1
python3 -m venv "$folder/venv" 2>/dev/null || { apt-get install -y -q python3-venv >/dev/null && python3 -m venv "$folder/venv"; }
"$folder/venv/bin/pip" install --quiet --no-deps --target "$folder/wheels" nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 \
  nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85 nvidia-cuda-culibos==13.0.85
home=$folder/wheels/nvidia/cu13
chmod +x "$home"/bin/* "$home"/nvvm/bin/*
[ -e "$home/lib64" ] || ln -s lib "$home/lib64"
printf '#!/bin/sh\nexec "%s/bin/nvcc" "$@"\n' "$(cd "$home" && pwd)" >"$folder/nvcc"
chmod +x "$folder/nvcc"
"$folder/nvcc" --version | tail -2
