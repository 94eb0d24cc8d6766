"""Row 1: from entropies and token scores to token rewards, tensors against a loop over rows and tokens.

The loop is written from the specification in the way of the published code: one element of a tensor read for every token,
a normaliser of a few tensor operations for every segment. Both sides are given the same tensors.
"""

import torch
from harness import Options, Result, alternate, compared, run_alone, timed
from torch import Tensor

from denserl.ppo_utils.assignment import assign_rewards
from denserl.ppo_utils.normalizer import STD_FLOOR, LocationNormalizer
from denserl.segmentation import segment_by_entropy, segment_scores

ROWS, TOKENS = 16, 1024
REACH = 1000.0
# Name, threshold, and the constants that the paper (arXiv 2501.02790) published for Phi-3; see denserl/ppo_utils/param.json.
LEVELS = (
    ("segment", 1.75, LocationNormalizer(0.7668, 0.2569, 0.4705, 2.8339)),
    ("token", 0.0, LocationNormalizer(0.9628, 0.3796, 1.2917, 3.5006)),
)


def measure(options: Options) -> list[Result]:
    """Tensors against the loop at segment and token level, CPU or CUDA; both sides must agree to fp32 rounding."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(ROWS, TOKENS, generator=generator).to(options.device)
    # Uniform up to 2.2 nats: at 1.75 every fifth token opens a segment.
    entropy = (torch.rand(ROWS, TOKENS, generator=generator) * 2.2).to(options.device)
    mask = torch.ones(ROWS, TOKENS, dtype=torch.bool, device=options.device)
    return [_level(options, *level, scores, entropy, mask) for level in LEVELS]


def _level(options: Options, name: str, threshold: float, normalizer, scores: Tensor, entropy: Tensor, mask: Tensor) -> Result:
    def ours() -> Tensor:
        return by_tensors(scores, entropy, mask, threshold, normalizer)

    def theirs() -> Tensor:
        return by_loop(scores, entropy, mask, threshold, normalizer)

    # A quotient of numbers up to ten, each good to an fp32 rounding.
    torch.testing.assert_close(ours(), theirs(), rtol=1e-5, atol=1e-5)
    calls = 100  # of ours for one of the loop, so that both sides take long enough to be timed

    def our_calls() -> None:
        for _ in range(calls):
            ours()

    pairs = alternate(timed(our_calls, per=calls), timed(theirs), options.repeats or 7)
    return compared(1, f"dense reward, {name} level, {ROWS} x {TOKENS}, seconds", pairs, REACH)


def by_tensors(scores: Tensor, entropy: Tensor, mask: Tensor, threshold: float, normalizer: LocationNormalizer) -> Tensor:
    """(B, T) token rewards, each segment's reward split evenly, as PPO makes them."""
    segments = segment_by_entropy(entropy, mask, threshold)
    rewards = normalizer(segment_scores(scores, segments), segments.counts)
    return assign_rewards(rewards, segments, "even", mask)


def by_loop(scores: Tensor, entropy: Tensor, mask: Tensor, threshold: float, normalizer: LocationNormalizer) -> Tensor:
    """The same, row by row and token by token (arXiv 2501.02790, sections 3.2 and 3.3)."""
    rewards = torch.zeros_like(scores)
    for b in range(len(mask)):
        last = int(mask[b].nonzero().max())
        segments: list[list[int]] = []
        for t in range(max(last, 1)):
            if t == 0 or entropy[b, t].item() > threshold:
                segments.append([])
            segments[-1].append(t)
        for k, tokens in enumerate(segments, start=1):
            log = torch.log(torch.tensor(k / len(segments), device=scores.device))
            mean = normalizer.w_mu * log + normalizer.b_mu
            std = torch.clamp(normalizer.w_sigma * log + normalizer.b_sigma, min=STD_FLOOR * normalizer.b_sigma)
            reward = (scores[b, tokens[-1]] - mean) / std
            for t in tokens:
                rewards[b, t] = reward / len(tokens)
    return rewards


def main() -> None:
    run_alone(measure)


if __name__ == "__main__":
    main()
