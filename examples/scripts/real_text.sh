#!/usr/bin/env bash
# The pipeline on real text, at lengths up to 512 tokens: a tokenizer and a small language model are trained on plain English and
# on chosen responses, then reward model, normaliser and PPO follow through the ordinary commands.
# usage: real_text.sh DATA_FOLDER [OUTPUT_FOLDER]     DATA_FOLDER holds text/, ultrafeedback-1k/, hh-harmless/ and prompts/
set -euo pipefail
data=${1:?usage: real_text.sh DATA_FOLDER [OUTPUT_FOLDER]}
out=${2:-runs/real}
# The environment in use, else the one that `make` creates.
command -v denserl > /dev/null || PATH="$(cd "$(dirname "$0")/../.." && pwd)/.venv/bin:$PATH"
denserl() { echo "+ denserl $*" >&2; command denserl "$@"; }

text=("$data/text/wiki_demo.txt" "$data/text/c4_demo.jsonl")
pairs=("$data/ultrafeedback-1k/train.jsonl" "$data/hh-harmless/train.jsonl.gz")
held_out=("$data/ultrafeedback-1k/test.jsonl" "$data/hh-harmless/test.jsonl.gz")
lengths=(--max_length 512 --max_prompt_length 256)
small=(--save_steps 0 --on_bad_row skip)

denserl new-model --data "${text[@]}" "${pairs[@]}" --on_bad_row skip --output_dir "$out/base" \
    --vocab_size 4096 --hidden_size 128 --num_layers 2 --num_heads 4
denserl train-sft --model "$out/base" --data "${text[@]}" "${pairs[@]}" --output_dir "$out/sft" \
    --epochs 1 --batch_size 16 --micro_batch_size 16 --lr 4e-3 --max_length 512 "${small[@]}"
denserl train-rm --model "$out/sft" --data "${pairs[@]}" --eval_data "${held_out[@]}" --output_dir "$out/rm" \
    --reward_level segment --entropy_threshold 6.6 --model_type real --cache_dir "$out/cache" \
    --epochs 1 --batch_size 32 --micro_batch_size 8 --lr 2e-4 --eval_steps 0 "${lengths[@]}" "${small[@]}"
denserl fit-normalizer --reward_model "$out/rm" --data "${pairs[@]}" --on_bad_row skip --dataset_tag real \
    --params "$out/param.json" --output_dir "$out/fit" --cache_dir "$out/cache" "${lengths[@]}"
denserl train-ppo --model "$out/sft" --reward_model "$out/rm" --data "$data/ultrafeedback-1k/train.jsonl" --on_bad_row skip \
    --eval_prompts "$data/prompts/arena-hard-v0.1.jsonl" --eval_limit 32 --eval_every 5 --output_dir "$out/ppo" \
    --reward_level segment --entropy_threshold 6.6 --fit_tag real --params "$out/param.json" \
    --iterations 10 --rollout_batch_size 32 --train_batch_size 16 --micro_batch_size 8 --max_prompt_length 256 \
    --max_new_tokens 256 --actor_lr 5e-5 --critic_lr 5e-4 --zero_stage 0 --save_every 0
