"""The documentation as a site, made by Sphinx: the pages of this folder, and the docstrings of the code (`make docs`)."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))  # the code of this folder, whatever is installed

project = "C-Reason"
html_title = project
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_copy_source = False
highlight_language = "none"
add_module_names = False
exclude_patterns = ["custom", "screenshots"]
root_doc = "index"

myst_enable_extensions: list[str] = []
myst_heading_anchors = 3  # links such as models.md#prompts
# Twins of the backends share their names, so a short name in a signature may mean several.
suppress_warnings = ["myst.xref_missing_anchor", "ref.python"]

default_role = "literal"  # single backticks in docstrings, as in Markdown
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": True, "ignore-module-all": True}
autodoc_use_type_comments = False
python_maximum_signature_line_length = 100

LISTS = ("index", "spec/README")  # pages that list others
PACKAGES = ("shared", "creason_jax", "creason_torch", "parity")
API = DOCS / "api"  # made here, not kept


def write_api(_: Sphinx) -> None:
    """Write a page for each package with what its modules say of themselves, and the list of these pages."""
    API.mkdir(exist_ok=True)
    for path in API.glob("*.rst"):
        path.unlink()
    names = []
    for package in sorted(path.parent for name in PACKAGES for path in (ROOT / name).rglob("__init__.py")):
        name = ".".join(package.relative_to(ROOT).parts)
        modules = [name, *(f"{name}.{path.stem}" for path in sorted(package.glob("[!_]*.py")))]
        text = "\n".join(heading(name, "=") + [line for module in modules for line in module_lines(module, name)])
        (API / f"{name}.rst").write_text(text + "\n")
        names.append(name)
    listing = [*heading("The code", "="), ".. toctree::", "   :maxdepth: 1", "", *(f"   {name}" for name in names)]
    (API / "index.rst").write_text("\n".join(listing) + "\n")


def heading(text: str, line: str) -> list[str]:
    """A heading in reStructuredText."""
    return [text, line * len(text), ""]


def module_lines(module: str, package: str) -> list[str]:
    """What stands on a package's page about one of its modules."""
    title = [] if module == package else heading(module.removeprefix(f"{package}."), "-")
    return [*title, f".. automodule:: {module}", ""]


def as_restructured(_: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text: an indented part of one is shown as it stands."""
    if lines and lines[0].startswith("Alias for field number"):  # Python's own words for a field of a NamedTuple
        lines.clear()
    shown: list[str] = []
    for number, line in enumerate(lines):
        begins = line.startswith("    ") and (number == 0 or not lines[number - 1].strip())
        inside = number > 0 and any(before.startswith("    ") for before in shown[-1:])
        if begins and not inside:
            shown += ["::", ""]
        shown.append(line if line.startswith("    ") else re.sub(r"(?<!`)[*|](?=\w)", r"\\\g<0>", line))
    lines[:] = shown


def with_contents(_: Sphinx, page: str, source: list[str]) -> None:
    """The pages that a list of pages links to are its contents, section by section; beside the first list stands the code."""
    if page not in LISTS:
        return
    folder = Path(page).parent
    for section in re.split(r"^## ", source[0], flags=re.MULTILINE):
        pages = [str(folder / link) for link in dict.fromkeys(re.findall(r"\]\(([\w/]+)\.md\)", section))]
        if page == "index" and "architecture" in pages:
            pages.append("api/index")
        if pages:
            caption = section.splitlines()[0]
            options = [":hidden:", *([f":caption: {caption}"] if page == "index" else [])]
            source[0] += "\n".join(["", "```{toctree}", *options, "", *(f"/{name}" for name in pages), "```", ""])


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", with_contents)
    app.connect("builder-inited", write_api)
    app.connect("autodoc-process-docstring", as_restructured)
