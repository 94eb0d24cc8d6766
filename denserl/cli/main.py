"""The console script `denserl`: finds the command and hands over."""

import difflib
import importlib
import os
import select
import sys

from denserl.terminal import say

COMMANDS = {
    "demo": "the whole pipeline on the embedded world, at three levels, with a report",
    "make-world": "write an embedded world: base model, demonstrations, rewards, prompts",
    "new-model": "train a tokenizer on text and make a small untrained language model",
    "inspect": "look at data before training: rows, lengths, duplicates, labels, segments at every entropy threshold",
    "train-sft": "supervised fine-tuning of a language model",
    "train-rm": "train a reward model on preferences, or on labelled steps or outcomes of solutions",
    "strength": "measure how strong preferences are, by the votes of several reward models",
    "fit-normalizer": "fit the location-aware reward normaliser and store it",
    "train-ppo": "PPO against reward models, functions or servers, with segment, token or bandit rewards",
    "import-gguf": "a language model out of a GGUF file, as a folder that the other commands read",
    "merge": "merge LoRA adapters into a whole model folder",
    "export": "write a reward model in other libraries' layouts, or read them",
    "push": "send a model with its card to the Hugging Face hub",
    "evaluate": "judge a reward model: pairs, RewardBench 1 and 2, RMB, HHH, MT-Bench, LLMBar, ProcessBench, stored answers",
    "answer": "let a policy answer AlpacaEval, Arena-Hard, MT-Bench, or prompts of your own",
    "judge": "judge the answers of policies: AlpacaEval, Arena-Hard, MT-Bench, prompts of one's own",
    "score": "score texts by any source of rewards: coloured segments at the terminal, JSON lines, a page",
    "bon": "best-of-n: sample, score with proxy and gold, and draw both against KL",
    "report": "runs as one page, alone or compared: curves, samples, fits, judgements, settings",
    "serve-rewards": "score responses for other processes and libraries, by HTTP",
    "plan": "the memory that each phase will need per GPU, from a model's config alone, and the first setting that fits",
    "check-model": "how a model can be run, as measured: packed or padded, its logits, decoding, training mode",
    "env": "versions, devices and launcher: what a bug report needs",
}


def main(argv: list[str] | None = None) -> None:
    try:
        _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python still writes at its end
        raise SystemExit(1) from None


def _reader_is_gone() -> bool:
    """Whether nobody reads stdout any more, as after `| head`."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _run(argv: list[str]) -> None:
    if not argv or argv[0] in ("-h", "--help"):
        say("usage: denserl COMMAND [OPTIONS]      (denserl COMMAND --help lists its options)\n")
        for name, what in COMMANDS.items():
            say(f"  {name:16}{what}")
        return
    if argv[0] == "--version":
        import denserl

        say(denserl.__version__)
        return
    if argv[0] not in COMMANDS:
        near = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"commands: {', '.join(COMMANDS)}"
        say(f"denserl: unknown command {argv[0]!r}; {hint}", sys.stderr)
        raise SystemExit(2)
    importlib.import_module(f"denserl.cli.{argv[0].replace('-', '_')}").main(argv[1:])


if __name__ == "__main__":
    main()
