"""Hooks of MkDocs: pages that lie outside docs/, and links that hold on GitHub and on the site alike."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

PAGES = {
    "README.md": "index.md",
    "infra/README.md": "tutorials/team-services.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
"""File of the repository -> page of the site."""

_SOURCES = {page: file for file, page in PAGES.items()}
_LINK = re.compile(r"(\]\(|src=\")(?!https?:|#|mailto:)([^)#\"\s]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie outside docs/."""
    root = Path(config.config_file_path).parent
    for file, page in PAGES.items():
        files.append(File.generated(config, page, content=(root / file).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_rest: Any) -> str:
    """Turn links between files of the repository into links between pages of the site."""
    source = page.file.src_uri
    folder = posixpath.dirname(_SOURCES.get(source, f"docs/{source}"))

    def on_the_site(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[2]))
        if target in PAGES:
            uri = PAGES[target]
        elif target.startswith("docs/"):
            uri = target.removeprefix("docs/")
        else:
            raise PluginError(f"{source} links to {target}, which the site does not hold: name it without a link")
        return link[1] + posixpath.relpath(uri, posixpath.dirname(source) or ".")

    return _LINK.sub(on_the_site, markdown)
