"""Row 7: the share of a PPO iteration that is neither model forward, backward, sampling nor optimiser.

Those are timed by wrapping them: the forwards of actor, critic and reference, the sources of rewards, the engines' backward and
step, the sampler. What remains is batches, segments, rewards, advantages, losses, metrics and files.
"""

import dataclasses
import time
from collections.abc import Callable

import fixtures
import ppo
import torch
from denserl_side import iteration, ppo_trainer
from harness import Options, Result, cpu_only, limited, run_alone, synchronize, timed

REACH = 0.05
SHAPE, REPEATS = "8x256", 2


class Stopwatch:
    """Seconds spent in wrapped functions, by name."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    def wrap(self, name: str, function: Callable) -> Callable:
        def measured(*args, **kw):
            synchronize()
            start = time.perf_counter()
            try:
                return function(*args, **kw)
            finally:
                synchronize()
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

        return measured


def measure(options: Options) -> list[Result]:
    """Overhead of a PPO iteration: a limit, smaller is better."""
    cpu_only(options)
    return [measure_shape(options, shape) for shape in options.models(SHAPE)]


def measure_shape(options: Options, shape: str) -> Result:
    model = fixtures.language_model(options, shape, fixtures.end_probability(ppo.LONGEST / 2, ppo.LONGEST))
    trainer = ppo_trainer(ppo.our_options(options, model, options.runs / f"out/overhead-{shape}"))
    torch.set_num_threads(options.threads)
    stopwatch = Stopwatch()
    watch(trainer, stopwatch)
    iterate = timed(lambda: iteration(trainer))
    iterate()
    shares = [parts_of(iterate, stopwatch) for _ in range(options.repeats or REPEATS)]
    outside = [1 - sum(parts.values()) for parts in shares]
    note = "of the last iteration: " + ", ".join(f"{name} {share:.1%}" for name, share in shares[-1].items())
    return limited(7, f"share of a PPO iteration outside models (limit), {shape}", outside, REACH, note=note)


def watch(trainer, stopwatch: Stopwatch) -> None:
    """Wrap what counts as model, sampling and optimiser in a PPOTrainer."""
    models = trainer.models
    for name, engine in (("actor", models.actor), ("critic", models.critic)):
        engine.forward = stopwatch.wrap(f"{name} forward", engine.forward)
        engine.backward = stopwatch.wrap(f"{name} backward", engine.backward)
        engine.step = stopwatch.wrap(f"{name} step", engine.step)
    models.reference.forward = stopwatch.wrap("reference forward", models.reference.forward)
    sources = [paid._replace(source=stopwatch.wrap("reward model", paid.source)) for paid in trainer.rewards.sources]
    trainer.rewards = dataclasses.replace(trainer.rewards, sources=sources)
    trainer.sampler = stopwatch.wrap("sampling", trainer.sampler)


def parts_of(iterate: Callable[[], float], stopwatch: Stopwatch) -> dict[str, float]:
    """Shares of one iteration by name."""
    stopwatch.seconds.clear()
    seconds = iterate()
    return {name: spent / seconds for name, spent in stopwatch.seconds.items()}


def main() -> None:
    run_alone(measure)


if __name__ == "__main__":
    main()
