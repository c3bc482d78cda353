#!/usr/bin/env bash
# A vLLM server for rollouts on its own GPU: MODEL (a Hugging Face directory with the architecture that is trained) and the
# longest prompt and completion together. The learner writes new weights to torch.server_weights and tells the server to
# read them, so the server listens on this machine only, and is nobody else's. It samples as each request says, not with the
# options in MODEL's generation_config.json; a learner refuses a server that was started otherwise.
set -euo pipefail
MODEL=${1:?usage: serve.sh MODEL MAX_TOKENS [GPU]}
MAX_TOKENS=${2:?usage: serve.sh MODEL MAX_TOKENS [GPU]}
export CUDA_VISIBLE_DEVICES=${3:-0} VLLM_SERVER_DEV_MODE=1 VLLM_NO_USAGE_STATS=1 HF_HUB_OFFLINE=1
exec vllm serve "$MODEL" --host 127.0.0.1 --port 8000 --dtype bfloat16 --max-model-len "$MAX_TOKENS" \
  --skip-tokenizer-init --generation-config vllm --hf-overrides '{"head_dtype": "float32"}'
