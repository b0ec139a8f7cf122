"""MkDocs hook: pages made of the README, the docstrings, the notebooks, and the files that those pages link to.

Nothing is copied into the repository: one page per section of the README, one per folder of the package.
"""

import html
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter
from traitlets.config import Config

ROOT = Path(__file__).parent.parent
EXTENDING = [
    "explore.view.View",
    "measures.driver.Number",
    "measures.driver.measure",
    "measures.edits.Edit",
    "model.position.PositionEncoding",
    "networks.base.Network",
    "networks.base.Probe",
    "results.reasons",
    "results_accessor.Numbers",
    "tasks.source.Source",
    "training.objectives.Objective",
]
"""Documented objects that are not in ``attnprobe.__all__``; the README says how to extend most of them."""
NOTEBOOKS = Config({"NbConvertBase": {"display_data_priority": ["image/png", "text/plain"]}})
"""Outputs as pictures or text: HTML of other packages does not fit the theme, nor does a view fit a page."""
LINK = re.compile(r"\]\((?!https?:)([^)\s#]*)(#[^)\s]*)?\)")


def slug(title: str) -> str:
    """Return the anchor of a heading, which is also the name of its page."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def readme_pages() -> dict[str, str]:
    """Return the front page and one page per section of the reference part of the README, by file name."""
    front, reference = (ROOT / "README.md").read_text().split("\n# Reference\n")
    sections = re.split(r"^## (.*)\n", reference, flags=re.MULTILINE)[1:]
    pages = {"index.md": f"---\nhide: [navigation]\n---\n{front}"}
    for title, text in zip(sections[::2], sections[1::2], strict=True):
        pages[f"{slug(title)}.md"] = f"# {title}\n" + re.sub(r"^###", "##", text, flags=re.MULTILINE)
    return pages


def public(module: griffe.Module) -> Iterator[str]:
    """Yield the paths of the public objects of a module; a public module stands for its own public objects."""
    names = module.exports
    if names is None:
        names = [name for name, member in module.members.items() if not (member.is_alias or member.is_attribute)]
        names = [name for name in names if not name.startswith("_")]
    for name in map(str, names):
        path = module.imports.get(name, f"{module.path}.{name}")
        member = module.package[path.partition(".")[2]]
        if isinstance(member, griffe.Module):
            yield from public(member)
        else:
            yield member.final_target.path if isinstance(member, griffe.Alias) else path


def reference_pages() -> tuple[dict[str, str], dict[str, str]]:
    """Return the pages of the docstrings by file name, and the address of the docstrings of each source file."""
    package = griffe.load("attnprobe", search_paths=[ROOT])
    assert isinstance(package, griffe.Module)
    by_folder: dict[str, list[str]] = {}
    for path in [*public(package), *(f"attnprobe.{name}" for name in EXTENDING)]:
        by_folder.setdefault(path.split(".")[1], []).append(path)
    pages, addresses, rows = {}, {}, []
    for folder, paths in sorted(by_folder.items()):
        page, paths = f"reference/{folder}.md", list(dict.fromkeys(paths))
        summary = (
            f"::: attnprobe.{folder}\n    options: {{members: false, heading_level: 1, show_root_full_path: true}}\n"
        )
        pages[page] = "\n".join([summary, *(f"::: {path}\n" for path in paths)])
        addresses[f"attnprobe/{folder}"] = page
        for path in paths:
            _, _, inner = path.partition(".")
            module, _, name = path.rpartition(".")
            addresses.setdefault(f"{module.replace('.', '/')}.py", f"{page}#{path}")
            docstring = package[inner].docstring
            if docstring is None:
                raise PluginError(f"{path}: has no docstring")
            rows.append(f"| [`{name}`]({folder}.md#{path}) | `{folder}` | {docstring.value.partition(chr(10))[0]} |")
    table = ["# Python reference", "", "| name | folder | |", "|---|---|---|", *sorted(rows, key=str.lower)]
    pages["reference/index.md"] = "\n".join(table)
    return pages, addresses


def with_deep_lists(text: str) -> str:
    """Indent what belongs to an item of a list by four spaces, where GitHub asks for two."""
    lines, in_item = [], False
    for line in text.split("\n"):
        in_item = line.startswith("- ") or (in_item and (not line or line.startswith("  ")))
        lines.append(f"  {line}" if in_item and line.startswith("  ") else line)
    return "\n".join(lines)


class Site:
    """Pages and files of the site by address, with the links of the repository made links of the site."""

    def __init__(self, config: MkDocsConfig) -> None:
        """Collect all pages."""
        self.config = config
        self.files: list[File] = []
        self.sections = readme_pages()
        self.reference, self.addresses = reference_pages()
        self.addresses |= {"README.md": "index.md", "analyses/README.md": "analyses.md"}
        exporter = MarkdownExporter(config=NOTEBOOKS)
        self.notebooks: list[str] = []
        for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
            page = f"notebooks/{notebook.stem}.md"
            self.notebooks.append(page)
            self.addresses[f"notebooks/{notebook.name}"] = page
            text, resources = exporter.from_filename(str(notebook), {"unique_key": notebook.stem})
            self.files.append(File.generated(config, page, content=text))
            for name, image in resources["outputs"].items():
                self.files.append(File.generated(config, f"notebooks/{name}", content=image))
        for page, text in self.sections.items():
            self._add_page(page, text, "")
        self._add_page("analyses.md", (ROOT / "analyses/README.md").read_text(), "analyses")
        for page, text in self.reference.items():
            self.files.append(File.generated(config, page, content=text))

    def nav(self) -> list[Any]:
        """Return the navigation."""
        guide = [page for page in self.sections if page != "index.md"]
        return [
            {"Home": "index.md"},
            {"Guide": [*guide, "exit-status.md"]},
            {"Notebooks": self.notebooks},
            {"Analyses": "analyses.md"},
            {"Python": [{"Names": "reference/index.md"}, *(page for page in self.reference if "index" not in page)]},
        ]

    def _add_page(self, page: str, text: str, folder: str) -> None:
        """Add a page whose links are relative to a folder of the repository."""

        def relinked(match: re.Match[str]) -> str:
            path, anchor = match[1], match[2] or ""
            if path:
                target = self._address(posixpath.normpath(posixpath.join(folder, path)))
            else:
                target = self._page_of(anchor[1:], page)
            target, _, own_anchor = target.partition("#")
            anchor = anchor or (f"#{own_anchor}" if own_anchor else "")
            return f"]({posixpath.relpath(target, posixpath.dirname(page) or '.')}{anchor})"

        content = LINK.sub(relinked, with_deep_lists(text))
        self.files.append(File.generated(self.config, page, content=content))

    def _page_of(self, anchor: str, page: str) -> str:
        """Return the page of the README with a heading, if the page with the link is one."""
        if page in self.sections and f"{anchor}.md" in self.sections:
            return f"{anchor}.md"
        return page

    def _address(self, path: str) -> str:
        """Return the address of a file of the repository, which becomes a page or a file of the site."""
        if path not in self.addresses:
            source, page = ROOT / path, f"linked/{path}.md"
            if path.endswith(".md"):
                self.addresses[path] = f"linked/{path}"
                self._add_page(f"linked/{path}", source.read_text(), posixpath.dirname(path))
            elif path.endswith((".py", ".txt", ".cff")):
                self.addresses[path] = page
                content = f"# {path}\n\n```{'python' if path.endswith('.py') else ''}\n{source.read_text()}\n```\n"
                self.files.append(File.generated(self.config, page, content=content))
            else:
                self._add_file(path)
        return self.addresses[path]

    def _add_file(self, path: str) -> None:
        self.addresses[path] = path
        self.files.append(File.generated(self.config, path, abs_src_path=str(ROOT / path)))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and the navigation."""
    site = Site(config)
    for file in site.files:
        files.append(file)
    config.nav = site.nav()
    return files


def on_page_content(content: str, **_: Any) -> str:
    """Make MathML of the equations of docstrings, so that pages need no script."""

    def mathml(match: re.Match[str]) -> str:
        display = "block" if match[1] == "div" else "inline"
        return convert(html.unescape(match[2]), display=display)

    return re.sub(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', mathml, content, flags=re.DOTALL)
