"""Hooks of mkdocs: the pages, each at the place of its file, files that pages link to, and the reference."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

from markdown import Extension
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "denserl"
OUTSIDE = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")  # pages that are not in docs/
# The command line is told by --help, and what runs in a server's own environment is no library.
NO_LIBRARY = ("cli", "rollouts/in_server")
BEHIND = "---\nsearch:\n  boost: 0.3\n---\n\n"
# What a browser fetches by itself.
LOADED = re.compile(r"""<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)="(?:https?:)?//[^"]*""")
LINK = re.compile(r"(\]\()((?!https?:|#)[^)#\s]+)((?:#[^)\s]*)?\))")


class NoHtml(Extension):
    """What looks like HTML is text: docstrings have inequalities and tags of models, and no page has HTML of its own."""

    def extendMarkdown(self, md):
        md.preprocessors.deregister("html_block")
        md.inlinePatterns.deregister("html")


def on_config(config):
    config.markdown_extensions.append(NoHtml())


def on_files(files, config):
    """Pages keep their places in the repository; those of the reference, and of files that are linked, are made."""
    for file in [file for file in files if file.src_dir == config.docs_dir]:
        files.remove(file)
        if not file.inclusion.is_excluded():
            files.append(_in_repository(f"docs/{file.src_uri}", config))
    for name in OUTSIDE:
        files.append(_in_repository(name, config))
    for path in sorted(_linked_sources(files)):
        files.append(File.generated(config, f"{path.relative_to(ROOT)}.md", content=_source_page(path)))
    (reference,) = [entry["Reference"] for entry in config.nav if "Reference" in entry]
    for name, content in reference_pages():
        files.append(File.generated(config, name, content=content))
        reference.append(name)
    return files


def on_page_markdown(markdown, page, config, files):
    """Links to files that are no pages lead to the pages that show them."""

    def to_page(link: re.Match) -> str:
        path = _target(page.file, link[2])
        return f"{link[1]}{link[2]}.md{link[3]}" if _is_source(path) else link[0]

    return LINK.sub(to_page, markdown)


def on_post_page(output, page, config):
    """No page fetches anything from elsewhere."""
    if found := LOADED.search(output):
        raise PluginError(f"{page.file.src_uri} loads from elsewhere: {found[0]}")


def reference_pages() -> Iterator[tuple[str, str]]:
    """(name, Markdown) of the public names, and of the modules of each room; searching puts them behind other pages."""
    yield "reference/index.md", BEHIND + _public_names()
    rooms = sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))
    yield from ((f"reference/{name}.md", BEHIND + page) for name, page in map(_room_page, [PACKAGE, *rooms]) if page)


def _room_page(folder: Path) -> tuple[str, str]:
    """The name and the page of a room; of the package itself those files that lie in no room."""
    below = folder.glob("*.py") if folder == PACKAGE else folder.rglob("*.py")
    paths = [path for path in sorted(below) if path.name != "__init__.py" and not _is_no_library(path)]
    name = "denserl" if folder == PACKAGE else f"denserl.{folder.name}"
    about = "" if folder == PACKAGE else ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8"))) or ""
    modules = [f"::: {_module(path)}" for path in paths]
    return name, "\n\n".join([f"# {name}", about, *modules]) + "\n" if modules else ""


def _public_names() -> str:
    """A table of what `import denserl` offers: the names of denserl/__init__.pyi, each with the first line of its docstring."""
    rows: list[str] = []
    for node in ast.parse((PACKAGE / "__init__.pyi").read_text("utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            path = PACKAGE / f"{node.module.replace('.', '/')}.py"
            told = {
                found.name: (ast.get_docstring(found) or "").split("\n")[0].replace("|", r"\|")
                for found in ast.parse(path.read_text("utf-8")).body
                if isinstance(found, (ast.FunctionDef, ast.ClassDef))
            }
            rows += [f"| [`denserl.{n.asname}`][denserl.{node.module}.{n.name}] | {told[n.name]} |" for n in node.names]
    head = "# Reference\n\nThe public names, and below them every room's modules.\n\n| name | what |\n| --- | --- |\n"
    return head + "\n".join(rows) + "\n"


def _linked_sources(files: Files) -> set[Path]:
    pages = [file for file in files.documentation_pages()]
    return {path for file in pages for link in LINK.findall(file.content_string) if _is_source(path := _target(file, link[1]))}


def _target(file: File, link: str) -> Path:
    return (ROOT / file.src_uri).parent.joinpath(link).resolve()


def _is_source(path: Path) -> bool:
    return path.is_file() and path.suffix not in (".md", ".png")


def _source_page(path: Path) -> str:
    """The file's text, in the colours of its language; searching passes it over. Of a notebook its cells."""
    text = path.read_text("utf-8")
    if path.suffix == ".ipynb":
        cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"]]
        return "\n\n".join(source if kind == "markdown" else f"```python\n{source}\n```" for kind, source in cells)
    fenced = f"`````{path.suffix[1:] or 'text'}\n{text}\n`````"
    return f"---\nsearch:\n  exclude: true\n---\n\n# {path.relative_to(ROOT)}\n\n{fenced}\n"


def _is_no_library(path: Path) -> bool:
    return any(path.is_relative_to(PACKAGE / name) for name in NO_LIBRARY)


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def _in_repository(name: str, config) -> File:
    return File(name, str(ROOT), config.site_dir, config.use_directory_urls)
