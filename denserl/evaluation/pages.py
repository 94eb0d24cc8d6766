"""Self-contained HTML pages: their templates, and the colours of numbers.

Texts of models and data are untrusted: the templates escape them, and whoever fills these has control characters (ANSI escapes,
bidi controls) replaced by their code points. A page loads nothing from elsewhere and runs no script.
"""

import base64
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FunctionLoader, StrictUndefined

MEDIA_TYPES = {".png": "image/png", ".svg": "image/svg+xml"}

Colour = tuple[int, int, int]


class Scale(NamedTuple):
    """The RGB colours of -1, 0 and 1, on all of which the page's text can be read."""

    low: Colour
    middle: Colour
    high: Colour

    def colour(self, share: float) -> str:
        """The CSS colour of a number; below -1 and above 1 that of the end."""
        share = min(max(share, -1.0), 1.0)
        end = self.high if share > 0 else self.low
        parts = (round(middle + (to - middle) * abs(share)) for middle, to in zip(self.middle, end, strict=True))
        return "#" + "".join(f"{part:02x}" for part in parts)


LIGHT = Scale((243, 168, 110), (246, 246, 244), (120, 180, 224))
DARK = Scale((116, 58, 14), (42, 45, 51), (18, 70, 116))


def render(template: str, page: dict[str, Any]) -> str:
    """The page that a template of this folder makes of its texts."""
    environment = Environment(
        loader=FunctionLoader(lambda name: files("denserl.evaluation").joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(page)


def data_uri(image: Path) -> str:
    """A picture as it stands in a page."""
    return f"data:{MEDIA_TYPES[image.suffix]};base64,{base64.b64encode(image.read_bytes()).decode()}"
