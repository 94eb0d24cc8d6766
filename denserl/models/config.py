"""Options of how a model's weights are trained (recomputed activations, and adapters in their place), and where it goes."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt, Interval

from denserl.config import RESUMABLE, Config, Only

WITHOUT_ADAPTERS = Only("without `lora_rank`", lambda c: c.lora_rank)


@dataclass(kw_only=True)
class AdapterConfig(Config):
    """Which weights learn, and what is kept of a forward pass for the backward one."""

    group: ClassVar[str] = "adapters and memory"

    gradient_checkpointing: Annotated[bool | None, RESUMABLE] = None
    """Recompute activations in the backward pass, for more time and far less memory; default: on CUDA, where the model's class
    can."""
    use_liger_kernel: Annotated[bool, RESUMABLE] = False
    """Norms and MLPs by Liger's Triton kernels (extra denserl[liger]), for less time and memory on CUDA."""
    lora_rank: Annotated[int, Ge(0)] = 0
    """Train LoRA adapters of this rank instead of all weights; 0 trains all."""
    load_in_4bit: Annotated[bool, WITHOUT_ADAPTERS] = False
    """Hold the weights under the adapters in 4 bits (NF4, doubly quantised), with the extra denserl[4bit]; adapters are merged
    into the model as it is stored."""
    lora_alpha: Annotated[float, Gt(0), WITHOUT_ADAPTERS] = 32.0
    """LoRA scaling."""
    lora_dropout: Annotated[float, Interval(ge=0, lt=1), WITHOUT_ADAPTERS] = 0.0
    """LoRA dropout."""
    lora_targets: Annotated[list[str] | None, WITHOUT_ADAPTERS] = None
    """Modules that get adapters; default: all linear layers of the backbone."""

    def base_loading(self) -> dict[str, Any]:
        """The arguments that the loading of the model to be trained takes beside those of all models."""
        return {"four_bit": True} if self.load_in_4bit else {}


@dataclass(kw_only=True)
class SharingConfig(Config):
    """Where a model goes beside its folder."""

    group: ClassVar[str] = "sharing"

    push_to_hub: Annotated[str | None, RESUMABLE] = None
    """Send the model, and nothing else, to this repository of the hub (USER/NAME) when it is written; it is private."""
    hub_public: Annotated[bool, RESUMABLE, Only("without `push_to_hub`", lambda c: c.push_to_hub)] = False
    """Let all see the repository."""
