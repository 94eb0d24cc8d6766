"""What a model does when it is run: what the probe finds when any command loads it."""

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from denserl.cli.launch import launch
from denserl.config import FIRST, MODEL, ModelSourceConfig
from denserl.terminal import quiet_libraries, say, visible


@dataclass(kw_only=True)
class Options(ModelSourceConfig):
    """Measure a language model or a reward model: how it can be run, and how far results are apart that should be equal."""

    model: Annotated[Positional[str], MODEL, FIRST, arg(metavar="PATH")]
    """Model to measure: folder or hub name."""
    dtype: Annotated[Literal["fp32", "bf16"], FIRST] = "fp32"
    """Precision of the weights."""


def run(options: Options) -> None:
    from denserl.models.loading import load_policy
    from denserl.models.measured import measured
    from denserl.models.probe import AT_ONCE, NARROW_TOLERANCE, TOLERANCE
    from denserl.models.reward_models import holds_reward_head, load_reward_model

    quiet_libraries()
    is_reward_model = holds_reward_head(options.model)
    load = load_reward_model if is_reward_model else load_policy
    model = load(options.model, options.dtype, **options.model_source())
    found = measured(model)
    rows = [
        ("model", f"{type(model).__name__}, a {'reward' if is_reward_model else 'language'} model in {options.dtype}"),
        ("runs", f"on padded batches, with {found.attention} attention" if found.unpacked else "without padding"),
        ("", found.unpacked or found.row_by_row or found.masked),
    ]
    if not is_reward_model:
        scale, cap = found.logits.scale, found.logits.cap
        logits = f"the head's output x {scale:g}" + ("" if cap is None else f", capped at {cap:g}")
        decoder = "not at all" if found.unsampled else "with generate" if found.generates else "by the own decoder"
        rows += [
            ("logits", logits),
            ("is sampled from", decoder),
            ("", found.unsampled or ("" if found.unpacked else found.generates)),
        ]
    rows += [
        ("can be trained", "no" if found.unsteady else "yes, without dropout it is the same in every pass"),
        ("", found.unsteady),
        ("longest row", "as its positions allow" if found.longest is None else f"{found.longest} tokens"),
        ("", "" if found.longest is None else "beyond that, a row's positions change what its first tokens mean"),
        *(
            (f"apart, {what}", f"{value:.1e} of at most {NARROW_TOLERANCE if what == AT_ONCE else TOLERANCE:g}")
            for what, value in found.apart.items()
        ),
    ]
    say("\n".join(f"{name:36}{visible(text, kept='')}" for name, text in rows if text))


def main(argv: list[str] | None = None) -> None:
    launch(Options, "check-model", run, argv)


if __name__ == "__main__":
    main()
