"""Templates made into self-contained HTML pages, which load nothing and run nothing but the scripts of this package.

Texts of models and data are untrusted. They reach a page through autoescape, or as JSON (`data` in a template) that the page's
scripts put into the document as text; whoever fills a page has control characters (ANSI escapes, bidi controls) replaced by
their code points (`denserl.terminal.visible`). What runs is named by its hash in the page's own policy, so that nothing else
would run if it came to stand there.
"""

import base64
import functools
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

MEDIA_TYPES = {".png": "image/png", ".svg": "image/svg+xml"}
# Of a page with charts (charts.html).
CHART_SCRIPTS = ("pages/vendor/uPlot.iife.min.js", "pages/charts.js")


def render(template: str, page: dict[str, Any], scripts: Sequence[str] = (), connects: bool = False) -> str:
    """The page that a template makes of its texts.

    Args:
        template: "room/name.html", a file of the package, which extends pages/page.html.
        page: what the template names. A numpy array or anything else that JSON has not may not be in what it shows by `data`.
        scripts: "room/name.js", files of the package that the page runs at its end, in this order.
        connects: whether its scripts may ask the server that the page is from.
    """
    inlined = [Markup(_text(name).strip()) for name in scripts]
    allowed = {"default-src": "'none'", "img-src": "data:", "style-src": "'unsafe-inline'"}
    if scripts:
        allowed["script-src"] = " ".join(f"'{_hash(script)}'" for script in inlined)
    if connects:
        allowed["connect-src"] = "'self'"
    policy = "; ".join(f"{kind} {sources}" for kind, sources in allowed.items())
    return _environment().get_template(template).render(page, scripts=inlined, policy=Markup(policy))


@functools.cache
def _environment() -> Environment:
    """Templates are compiled once."""
    loader, blocks = FunctionLoader(lambda name: _text(name)), {"trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, **blocks)
    environment.filters["data"] = _as_data
    return environment


def data_uri(image: Path) -> str:
    """A picture as it stands in a page."""
    return f"data:{MEDIA_TYPES[image.suffix]};base64,{base64.b64encode(image.read_bytes()).decode()}"


def _text(name: str) -> str:
    return files("denserl").joinpath(name).read_text(encoding="utf-8")


def _as_data(value: Any) -> Markup:
    """JSON as it stands in <script type="application/json">, which no text in it can end. Numbers must be finite."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))


def _hash(script: str) -> str:
    """As a content security policy names a script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
