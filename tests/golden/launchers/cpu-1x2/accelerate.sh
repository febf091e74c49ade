#!/usr/bin/env bash
set -euo pipefail
folder=$(cd "$(dirname "$0")" && pwd)
export OMP_NUM_THREADS=1
export OMP_WAIT_POLICY=PASSIVE
export TOKENIZERS_PARALLELISM=false
export HF_HUB_DISABLE_TELEMETRY=1
export TQDM_DISABLE=1
export DS_ACCELERATOR=cpu
export CUDA_VISIBLE_DEVICES=
exec python -m accelerate.commands.launch --config_file "$folder"/accelerate.yaml --main_process_port 0 -m zephyrctl.workers.sft "$folder"/job.json
