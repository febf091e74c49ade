#!/usr/bin/env bash
set -euo pipefail
folder=$(cd "$(dirname "$0")" && pwd)
MASTER_PORT=${MASTER_PORT:-29500}
export OMP_NUM_THREADS=8
export OMP_WAIT_POLICY=PASSIVE
export TOKENIZERS_PARALLELISM=false
export HF_HUB_DISABLE_TELEMETRY=1
export TQDM_DISABLE=1
export DS_ENV_FILE="$folder"/deepspeed.env
exec python -m deepspeed.launcher.runner --hostfile "$folder"/hostfile --num_nodes 2 --num_gpus 8 --master_port "$MASTER_PORT" --force_multi --no_local_rank --module zephyrctl.workers.sft "$folder"/job.json
