#!/usr/bin/env bash
# From policies, such as the output folders of denserl train-ppo, to the columns by which papers report them: answers to AlpacaEval 2,
# Arena-Hard and MT-Bench, a judge's verdicts on them, and one table. Given again, it goes on where it was ended.
# usage: evaluate_policies.sh QUESTIONS JUDGE OUTPUT POLICY... [-- FLAGS]
#   QUESTIONS  a folder with alpacaeval.json (the baseline's answers, which hold the questions), arenahard.jsonl, arenahard-baseline.jsonl,
#              mtbench.jsonl and, where the questions hold no right answers, mtbench-reference.jsonl
#   JUDGE      a YAML file of denserl judge's options, e.g. the lines   judge: https://HOST/v1   judge_model: NAME   judge_key_env: VARIABLE
#   POLICY     folders of models; each is called as its folder is
#   FLAGS      further flags of denserl answer, e.g. --max_new_tokens 1024
set -euo pipefail
usage="usage: evaluate_policies.sh QUESTIONS JUDGE OUTPUT POLICY... [-- FLAGS]"
questions=${1:?$usage} judge=${2:?$usage} out=${3:?$usage}
shift 3
policies=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do policies+=("${1%/}"); shift; done
[ $# -eq 0 ] || shift
[ ${#policies[@]} -gt 0 ] || { echo "$usage" >&2; exit 2; }
twice=$(for policy in "${policies[@]}"; do basename "$policy"; done | sort | uniq -d)
[ -z "$twice" ] || { echo "evaluate_policies.sh: several policies are called $twice; give their folders other names" >&2; exit 2; }
# The environment in use, else the one that `make` creates.
command -v denserl > /dev/null || PATH="$(cd "$(dirname "$0")/../.." && pwd)/.venv/bin:$PATH"
denserl() { echo "+ denserl $*" >&2; command denserl "$@"; }

references=()
[ ! -e "$questions/mtbench-reference.jsonl" ] || references=(--references "$questions/mtbench-reference.jsonl")
for policy in "${policies[@]}"; do
    name=$(basename "$policy")
    denserl answer alpacaeval --model "$policy" --questions "$questions/alpacaeval.json" --output_dir "$out/$name/alpacaeval" "$@"
    denserl answer arenahard --model "$policy" --questions "$questions/arenahard.jsonl" --output_dir "$out/$name/arenahard" "$@"
    denserl answer mtbench --model "$policy" --questions "$questions/mtbench.jsonl" --output_dir "$out/$name/mtbench" "$@"
done
judged() { # a suite, and flags
    local suite=$1 given=() policy
    for policy in "${policies[@]}"; do given+=("$out/$(basename "$policy")/$suite"); done
    denserl judge "$suite" "${given[@]}" --config "$judge" --output_dir "$out/judged/$suite" "${@:2}"
}
judged alpacaeval --baseline "$questions/alpacaeval.json"
judged arenahard --baseline "$questions/arenahard-baseline.jsonl" --questions "$questions/arenahard.jsonl"
judged mtbench --questions "$questions/mtbench.jsonl" ${references[@]+"${references[@]}"}

python3 - "$out/judged" << 'END'
import json
import sys
from pathlib import Path

suites = ("alpacaeval", "arenahard", "mtbench")
judged = [json.loads((Path(sys.argv[1]) / suite / "results.json").read_text())["policies"] for suite in suites]
for name in judged[0]:
    heads = [policies[name]["headline"] for policies in judged]
    told = (f"{head['name']} {'none' if head['value'] is None else round(head['value'], 2)}" for head in heads)
    print("\t".join([name, *(f"{suite} {what}" for suite, what in zip(suites, told))]))
END
