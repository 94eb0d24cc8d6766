"""The memory that the training commands will need, from a model's config alone, and the first setting that fits.

What each phase needs and the search are in denserl/memory; here they are printed.
"""

import warnings
from typing import TYPE_CHECKING

from denserl.cli.launch import launch
from denserl.memory.config import PlanConfig as Options
from denserl.memory.search import (
    BATCHES,
    GIB,
    STAGES,
    USABLE,
    Phase,
    Setting,
    first_fit,
    setting_given,
    settings_in_order,
    stages,
    usable_bytes,
)
from denserl.terminal import quiet_libraries, say

if TYPE_CHECKING:
    from denserl.memory.phases import Planner


def run(options: Options) -> dict[str, Setting | None]:
    """Prints the plan; returns the first setting that fits, by command."""
    quiet_libraries()
    warnings.filterwarnings("ignore", message=".*will be removed in v6", category=FutureWarning)
    usable = usable_bytes(options)
    from denserl.memory.phases import Planner

    planner = Planner(options, progress=True)
    phases = planner.phases()
    say("\n".join([heading(planner), "", table(phases, options), *reasons(planner), ""]))
    say(f"The first that fits {usable / GIB:.1f} GiB, {USABLE:.0%} of a GPU:")
    found = {}
    for command in dict.fromkeys(phase.command for phase in phases):
        own = [phase for phase in phases if phase.command == command]
        found[command] = first_fit(own, options, usable)
        say(f"{command:12}{advice(planner, command, own, found[command])}")
    planner.counted.close()
    return found


def heading(planner: "Planner") -> str:
    """The models, and what is planned for."""
    options, policy = planner.options, planner.size("policy")
    others = [*((role, role) for role in planner.critics), *(("reward model", role) for role in planner.scorers)]
    sizes = [f"{name} {planner.size(role).parameters / 1e9:.2f} B" for name, role in others]
    held = f", {sum(policy.four_bit) / 1e9:.2f} B held in 4 bits" if policy.four_bit else ""
    trained = f" ({policy.trained / 1e6:.1f} M of them trained{held})" if options.lora_rank else ""
    return (
        f"{options.model}: {policy.parameters / 1e9:.2f} B parameters{trained}; {', '.join(sizes)}\n"
        f"{options.gpus} GPU(s), {planner.dtype}, micro-batches of {options.micro_batch_size}; {options.max_length} tokens in "
        f"train-sft and train-rm, {options.max_prompt_length} + {options.max_new_tokens} in train-ppo"
    )


def table(phases: list[Phase], options: Options) -> str:
    """GiB of each phase at each stage, with what the options ask for and nothing more."""
    given = setting_given(options, 0)
    flags, possible = switches(given), stages(given.offload_optimizer, options.load_in_4bit)
    lines = [f"{' '.join(['GiB per GPU', *flags]):44}" + "".join(f"{f'ZeRO {stage}':>10}" for stage in STAGES)]
    for phase in phases:
        needs = [f"{phase.needs(given._replace(zero_stage=stage)) / GIB:.1f}" if stage in possible else "-" for stage in STAGES]
        lines.append(f"{phase.command:12}{phase.name:32}" + "".join(f"{need:>10}" for need in needs))
    return "\n".join(lines)


def reasons(planner: "Planner") -> list[str]:
    """Why columns of the table are equal, where they are."""
    options = planner.options
    stages_run = [planner.sharding(setting_given(options, stage)).stage for stage in STAGES]
    same = [str(stage) for stage, runs in zip(STAGES, stages_run) if runs == stages_run[0]]
    found = [f"ZeRO {', '.join(same)} are one: {planner.dtype} runs at stage {stages_run[0]} at least"] if len(same) > 1 else []
    if options.gpus == 1:
        found.append("one GPU has nothing to share: the stages differ in their buffers alone")
    return found


def advice(planner: "Planner", command: str, phases: list[Phase], setting: Setting | None) -> str:
    """The flags of a setting, and what it needs; or what else might help."""
    if setting is None:
        least = list(settings_in_order(planner.options))[-1]
        need, name = max((phase.needs(least) / GIB, phase.name) for phase in phases)
        options = planner.options
        smaller = "" if options.load_in_4bit else "--load_in_4bit, " if options.lora_rank else "--lora_rank 16, "
        engine = "--rollout_engine vllm, " if command == "train-ppo" and options.rollout_engine == "policy" else ""
        return f"nothing fits: {name} needs {need:.1f} GiB even so; try {smaller}{engine}shorter sequences or more --gpus"
    need, host = max(phase.needs(setting) for phase in phases) / GIB, planner.host(command, setting) / GIB
    also = f", and {host:.0f} GiB of main memory on all hosts together" if host else ""
    return f"{' '.join(flags(setting, planner.options, phases))}   ({need:.1f} GiB{also})"


def switches(setting: Setting) -> list[str]:
    """The switches of a setting that a training command does not have by itself."""
    without = ["--no-gradient_checkpointing"] if not setting.gradient_checkpointing else []
    return without + (["--offload_optimizer"] if setting.offload_optimizer else [])


def flags(setting: Setting, options: Options, phases: list[Phase]) -> list[str]:
    """The options of the command that make a setting: the stage, what is on, and the batches of its phases that are smaller."""
    chosen, given = setting._asdict(), setting_given(options, 0)._asdict()
    batches = [name for name in BATCHES if chosen[name] != given[name] and name in {phase.batch for phase in phases}]
    return [
        f"--zero_stage {setting.zero_stage}",
        *switches(setting),
        *(f"--{name} {chosen[name]}" for name in batches),
    ]


def main(argv: list[str] | None = None) -> None:
    launch(Options, "plan", run, argv)


if __name__ == "__main__":
    main()
