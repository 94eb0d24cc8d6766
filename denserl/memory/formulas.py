"""What training holds in a GPU's memory between and beside forward passes, as formulas in bytes of what DeepSpeed allocates.

The memory of the passes themselves is counted in meta_pass.py.
"""

import math
from typing import NamedTuple

from torch import nn

from denserl.models.decoding import growth, room
from denserl.models.four_bit import form_of, four_bit_bytes, is_four_bit

# DeepSpeed's defaults, in numbers: how many gradients are reduced at once, and how many parameters ZeRO-3 keeps gathered.
REDUCE_BUCKET = 500_000_000
MAX_LIVE_PARAMETERS = 1_000_000_000
MAX_SUB_GROUP = 1_000_000_000
# Bytes of a number of a gradient where those of several micro-batches are added up, whatever the width of weights.
ADDED_UP = 4


class Size(NamedTuple):
    """Numbers in a model's parameters: all of them (tied ones once), those that are trained, and of each weight in 4 bits."""

    parameters: int
    trained: int
    four_bit: tuple[int, ...] = ()

    @classmethod
    def of(cls, model: nn.Module) -> "Size":
        # Parameters that ZeRO-3 has in shares say the number of the whole.
        counts = [(p, getattr(p, "ds_numel", math.prod(form_of(p).shape))) for p in model.parameters()]
        trained = sum(n for p, n in counts if p.requires_grad)
        return cls(sum(n for _, n in counts), trained, tuple(n for p, n in counts if is_four_bit(p)))


class Sharding(NamedTuple):
    """How models are spread: GPUs, ZeRO stage, bytes of a weight (4 or 2), optimiser state in main memory or not."""

    gpus: int
    zero_stage: int
    width: int
    offload: bool = False

    @property
    def stage(self) -> int:
        """The stage that runs: bf16 runs at stage 2 at least (see trainer/engine.py)."""
        return max(self.zero_stage, 2) if self.width == 2 else self.zero_stage


def weights(size: Size, sharding: Sharding) -> int:
    """width x parameters; at stage 3 each GPU has its share. Weights in 4 bits take `four_bit_bytes`."""
    whole = sharding.width * (size.parameters - sum(size.four_bit)) // (sharding.gpus if sharding.stage == 3 else 1)
    return whole + sum(map(four_bit_bytes, size.four_bit))


def dequantised(size: Size, sharding: Sharding) -> int:
    """What a pass holds of weights in 4 bits as they are multiplied, one after another: width x the numbers of the largest."""
    return sharding.width * max(size.four_bit, default=0)


def optimizer_states(size: Size, sharding: Sharding) -> int:
    """Adam's two moments, 8 bytes a trained parameter; with ZeRO also fp32 weights to update, 12 in all, each GPU its share.

    ZeRO makes that copy in fp32 training as well. Nothing on the GPU when offloaded.
    """
    if sharding.offload:
        return 0
    return 12 * size.trained // sharding.gpus if sharding.stage else 8 * size.trained


def gradients_kept(size: Size, sharding: Sharding) -> int:
    """Gradients between the micro-batches of a step, in fp32: 4 x trained below stage 2, from there each GPU its share.

    Where the optimiser is offloaded, stage 3 keeps them in main memory, and stage 2 those of fp32 models.
    """
    if sharding.stage < 2:
        return ADDED_UP * size.trained
    in_main_memory = sharding.offload and (sharding.stage == 3 or sharding.width == ADDED_UP)
    return 0 if in_main_memory else ADDED_UP * size.trained // sharding.gpus


def reduce_bucket(size: Size, sharding: Sharding) -> int:
    """The buffer in which gradients are reduced: with ZeRO always whole, however small the model."""
    return sharding.width * REDUCE_BUCKET if sharding.stage else 0


def gathered_weights(size: Size, sharding: Sharding) -> int:
    """At stage 3, the parameters at hand, and as much again in buffers through which they come and their gradients go."""
    return 2 * sharding.width * min(size.parameters, MAX_LIVE_PARAMETERS) if sharding.stage == 3 else 0


def at_rest(size: Size, sharding: Sharding) -> int:
    """What a trained model holds all the time: weights and optimiser states; at stage 3 also its gradients and the bucket."""
    held = weights(size, sharding) + optimizer_states(size, sharding)
    if sharding.stage == 3:
        held += gradients_kept(size, sharding) + reduce_bucket(size, sharding)
    return held


def between_micro_batches(size: Size, sharding: Sharding) -> int:
    """What it holds beyond that from one micro-batch of a step to the next: gradients; at stage 1 the bucket stays as well."""
    if sharding.stage == 3:
        return 0
    return gradients_kept(size, sharding) + (reduce_bucket(size, sharding) if sharding.stage == 1 else 0)


def in_backward(size: Size, sharding: Sharding) -> int:
    """The same at the height of a backward pass, activations apart.

    Stage 2 keeps the sum of its share's gradients, and holds the bucket and, on several GPUs, a flat copy of what is being
    reduced. Stage 3 holds gathered parameters, and their gradients in fp32.
    """
    if sharding.stage == 3:
        wider = (ADDED_UP - sharding.width) * min(size.trained, MAX_LIVE_PARAMETERS)
        return gathered_weights(size, sharding) + wider
    held = between_micro_batches(size, sharding) + dequantised(size, sharding)
    if sharding.stage == 2:
        flat = sharding.width * min(size.trained, REDUCE_BUCKET) * (sharding.gpus > 1)
        held += reduce_bucket(size, sharding) + flat
    return held


def in_step(size: Size, sharding: Sharding) -> int:
    """The same in the optimiser's step, which comes after the backward pass, when activations are gone.

    Without ZeRO, gradients and, as measured, one more fp32 copy of them (8 bytes a trained parameter). With ZeRO, the same of
    the GPU's share, at stage 3 of a sub-group at a time. At stage 1 the reduction before it needs the gradients twice, whole
    and in the GPU's share, and the bucket.
    """
    share = size.trained // sharding.gpus if sharding.stage else size.trained
    update = 8 * (min(share, MAX_SUB_GROUP) if sharding.stage == 3 else share)
    if sharding.offload:
        update = 0
    reduction = between_micro_batches(size, sharding) + sharding.width * share if sharding.stage == 1 else 0
    return max(update, reduction)


def meta_peak(size: Size, sharding: Sharding, activations: int) -> int:
    """What a meta step needs beyond `at_rest`: the gradient that it adds up in fp32, 4 x trained, and its backward pass.

    That ends with all of its gradients, width x trained, when activations are gone. At stage 3 each GPU has its share of the
    sum, gradients of a pass leave one by one, and parameters are gathered.
    """
    if sharding.stage == 3:
        return ADDED_UP * size.trained // sharding.gpus + gathered_weights(size, sharding) + activations
    return ADDED_UP * size.trained + max(activations, sharding.width * size.trained)


def moved_weights(size: Size, sharding: Sharding) -> int:
    """Trained weights as they were before a meta step, to be put back: width x trained; at stage 3 each GPU its share."""
    return sharding.width * size.trained // (sharding.gpus if sharding.stage == 3 else 1)


def training_peak(size: Size, sharding: Sharding, activations: int) -> int:
    """What a trained model needs beyond `at_rest`: backward pass and optimiser step come after one another.

    At stage 2 the micro-batch's own share of gradients comes while activations go.
    """
    own = ADDED_UP * size.trained // sharding.gpus if sharding.stage == 2 else 0
    return max(in_backward(size, sharding) + max(activations, own), in_step(size, sharding))


def sampling_copy(size: Size, sharding: Sharding) -> int:
    """The whole copy of the policy that samples at stage 3: width x parameters."""
    return sharding.width * size.parameters if sharding.stage == 3 else 0


def moving_average(size: Size) -> int:
    """The average of the trained weights, in fp32 and whole on each GPU: 4 x trained."""
    return 4 * size.trained


def offloaded(size: Size, sharding: Sharding) -> int:
    """Main memory of all ranks together when the optimiser is offloaded: 16 + 2 x width bytes a trained parameter.

    fp32 weights, two moments, fp32 gradients, gradients of earlier micro-batches, and updated weights on their way back.
    """
    return (16 + 2 * sharding.width) * size.trained if sharding.offload else 0


def cache_columns(prompt: int, new_tokens: int) -> int:
    """Tokens that a row's cache has room for when the last is drawn: it grows step by step (see decoding.py)."""
    columns = room(prompt + 1)
    while columns < prompt + new_tokens - 1:
        columns = room(columns + growth(columns))
    return columns


def cache(bytes_per_token: int, rows: int, prompt: int, new_tokens: int) -> int:
    """The cache of keys and values of `rows` responses at its largest: rows x columns x `meta_pass.cache_bytes_per_token`."""
    return rows * cache_columns(prompt, new_tokens) * bytes_per_token


def sampling_step(rows: int, vocabulary: int) -> int:
    """Drawing one token for each row: the vocabulary three times in fp32 and once in fp64, 20 bytes a logit."""
    return 20 * rows * vocabulary
