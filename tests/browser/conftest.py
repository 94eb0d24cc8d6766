"""A browser that looks at pages: `make browser-test`. Every page that is visited may log nothing and ask for nothing.

Playwright stands in a folder of its own (runs/browser), for nothing else here needs it; the browser is the system's chromium.
"""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
DRIVER = ROOT / "runs/browser"
SHOTS = DRIVER / "shots"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
# A phone and a wide window, by day and by night.
VIEWS = [(width, scheme) for width in (320, 1400) for scheme in ("light", "dark")]

sys.path += [str(Path(__file__).parent.parent / name) for name in ("hostile", "report")]


@pytest.fixture(scope="session")
def browser():
    sys.path.append(str(DRIVER))
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.exit(f"playwright is not in {DRIVER}: run `make browser-test`, which installs it there", 2)
    if CHROMIUM is None:
        pytest.exit("no chromium here: install it, e.g. `apt-get install chromium`", 2)
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture(params=VIEWS, ids=[f"{width}-{scheme}" for width, scheme in VIEWS])
def view(request) -> tuple[int, str]:
    """Width in pixels and colour scheme."""
    return request.param


@pytest.fixture
def visit(browser):
    """Opens a page (a file, or an address); at the end none may have logged anything, nor asked for anything elsewhere."""
    contexts, said, asked = [], [], []

    def open_page(target: Path | str, view: tuple[int, str] = (1400, "light")):
        width, scheme = view
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        address = target.resolve().as_uri() if isinstance(target, Path) else target
        origin = address if isinstance(target, Path) else "/".join(address.split("/")[:3]) + "/"
        page.on("request", lambda request: None if request.url.startswith((origin, "data:")) else asked.append(request.url))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert (said, asked) == ([], [])


@pytest.fixture
def shoot() -> Callable:
    """Keeps a picture of a whole page, to be looked at, in runs/browser/shots."""

    def take(page, name: str) -> Path:
        SHOTS.mkdir(parents=True, exist_ok=True)
        path = SHOTS / f"{name}.png"
        page.screenshot(path=path, full_page=True)
        return path

    return take
