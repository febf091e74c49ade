#!/usr/bin/env bash
# On each of the 2 machines: MASTER_ADDR=... NODE_RANK=... bash accelerate.sh
set -euo pipefail
folder=$(cd "$(dirname "$0")" && pwd)
: "${MASTER_ADDR:?must be the address of the first machine}"
: "${NODE_RANK:?must be 0 on the first machine, 1 on the last}"
MASTER_PORT=${MASTER_PORT:-29500}
export OMP_NUM_THREADS=8
export OMP_WAIT_POLICY=PASSIVE
export TOKENIZERS_PARALLELISM=false
export HF_HUB_DISABLE_TELEMETRY=1
export TQDM_DISABLE=1
exec python -m accelerate.commands.launch --config_file "$folder"/accelerate.yaml --deepspeed_multinode_launcher standard --machine_rank "$NODE_RANK" --main_process_ip "$MASTER_ADDR" --main_process_port "$MASTER_PORT" -m zephyrctl.workers.sft "$folder"/job.json
