#!/usr/bin/env bash
# The pipeline on real text, at lengths up to 512 tokens: a tokenizer and a small language model are trained on plain English and
# on chosen responses, then reward models, normaliser and PPO in four ways of paying follow through the ordinary commands. Given
# again, it runs what has not finished.
# usage: real_text.sh DATA_FOLDER [OUTPUT_FOLDER]     DATA_FOLDER holds text/, ultrafeedback-1k/, hh-harmless/ and prompts/
set -euo pipefail
data=${1:?usage: real_text.sh DATA_FOLDER [OUTPUT_FOLDER]}
out=${2:-runs/real}
source "$(dirname "${BASH_SOURCE[0]}")/stages.sh"

text=("$data/text/wiki_demo.txt" "$data/text/c4_demo.jsonl")
pairs=("$data/ultrafeedback-1k/train.jsonl" "$data/hh-harmless/train.jsonl.gz")
held_out=("$data/ultrafeedback-1k/test.jsonl" "$data/hh-harmless/test.jsonl.gz")
lengths=(--max_length 512 --max_prompt_length 256)
small=(--save_steps 0 --on_bad_row skip)

denserl new-model --data "${text[@]}" "${pairs[@]}" --on_bad_row skip --output_dir "$out/base" \
    --vocab_size 4096 --hidden_size 128 --num_layers 2 --num_heads 4
denserl train-sft --model "$out/base" --data "${text[@]}" "${pairs[@]}" --output_dir "$out/sft" \
    --epochs 1 --batch_size 16 --micro_batch_size 16 --lr 4e-3 --max_length 512 "${small[@]}"
rm=(--model "$out/sft" --cache_dir "$out/cache" --epochs 1 --batch_size 32 --micro_batch_size 8 --lr 2e-4 --eval_steps 0)
denserl train-rm "${rm[@]}" --data "${pairs[@]}" --eval_data "${held_out[@]}" --output_dir "$out/rm" \
    --reward_level segment --entropy_threshold 6.6 "${lengths[@]}" "${small[@]}"
denserl train-rm "${rm[@]}" --data "${pairs[@]}" --eval_data "${held_out[@]}" --output_dir "$out/rm-bandit" \
    --reward_level bandit "${lengths[@]}" "${small[@]}"
# What judges in the end has seen other pairs as well, and starts from another head.
denserl train-rm "${rm[@]}" --data "${pairs[@]}" "${held_out[@]}" --output_dir "$out/gold" \
    --reward_level bandit --seed 1 "${lengths[@]}" "${small[@]}"
denserl fit-normalizer --reward_model "$out/rm" --data "${pairs[@]}" --on_bad_row skip \
    --output_dir "$out/fit" --cache_dir "$out/cache"

# One reward at the end by a model of whole responses; by the segment model; what each segment changes; as published.
ppo=(--model "$out/sft" --gold_reward_model "$out/gold" --data "$data/ultrafeedback-1k/train.jsonl" --on_bad_row skip)
held_out_prompts=(--eval_prompts "$data/prompts/arena-hard-v0.1.jsonl" --eval_limit 64 --eval_every 10)
sizes=(--iterations 40 --rollout_batch_size 32 --train_batch_size 16 --micro_batch_size 8 --max_prompt_length 256)
rates=(--ppo_epochs 2 --max_new_tokens 128 --actor_lr 3e-4 --critic_lr 1e-3 --kl_coefficient 0.05 --zero_stage 0 --save_every 0)
denserl train-ppo "${ppo[@]}" "${held_out_prompts[@]}" "${sizes[@]}" "${rates[@]}" \
    --reward_model "$out/rm-bandit" --reward_level bandit --output_dir "$out/ppo-bandit"
denserl train-ppo "${ppo[@]}" "${held_out_prompts[@]}" "${sizes[@]}" "${rates[@]}" \
    --reward_model "$out/rm" --entropy_threshold 6.6 --assignment score_last --output_dir "$out/ppo-at-the-end"
denserl train-ppo "${ppo[@]}" "${held_out_prompts[@]}" "${sizes[@]}" "${rates[@]}" \
    --reward_model "$out/rm" --entropy_threshold 6.6 --output_dir "$out/ppo"
denserl train-ppo "${ppo[@]}" "${held_out_prompts[@]}" "${sizes[@]}" "${rates[@]}" \
    --reward_model "$out/rm" --entropy_threshold 6.6 --assignment even \
    --output_dir "$out/ppo-published"
