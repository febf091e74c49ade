#!/usr/bin/env bash
set -euo pipefail
folder=$(cd "$(dirname "$0")" && pwd)
MASTER_PORT=${MASTER_PORT:-29500}
export OMP_NUM_THREADS=1
export OMP_WAIT_POLICY=PASSIVE
export TOKENIZERS_PARALLELISM=false
export HF_HUB_DISABLE_TELEMETRY=1
export TQDM_DISABLE=1
export DS_ACCELERATOR=cpu
export CUDA_VISIBLE_DEVICES=
exec python -m deepspeed.launcher.runner --hostfile "$folder"/hostfile --num_nodes 1 --num_gpus 2 --master_port "$MASTER_PORT" --no_ssh --node_rank 0 --master_addr 127.0.0.1 --no_local_rank --module zephyrctl.workers.sft "$folder"/job.json
