"""The page around a document: one file, with all it needs inside."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

_PACKAGE = "mpcompile.show.html_report"
STYLES = ("vendor/uPlot.min.css", "page/page.css")
SCRIPTS = (
    "vendor/cytoscape.min.js",
    "vendor/dagre.min.js",
    "vendor/uPlot.iife.min.js",
    *(
        f"page/{name}.js"
        for name in (
            "elements", "data", "modules", "edges", "layout", "look", "graph", "facts", "panel",
            "search", "tables", "plots", "pages", "main",
        )
    ),
)  # fmt: skip


def render(document: dict[str, Any], title: str) -> str:
    """Return the page as HTML.

    No script runs but ours: the page's policy names the hash of each, and what the document holds
    is data, read as JSON.

    Args:
        document: JSON-ready, see `mpcompile.show.html_report.document.document`.
        title: any text.
    """
    environment = Environment(
        loader=PackageLoader(_PACKAGE, "page"), autoescape=True, undefined=StrictUndefined
    )
    # What is not finite is no JSON: better no report than one that does not open.
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    scripts, styles = map(_read, SCRIPTS), map(_read, STYLES)
    parts = {"scripts": list(scripts), "styles": list(styles)}
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {_hashes(parts['scripts'])}",
            f"style-src {_hashes(parts['styles'])}",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    return environment.get_template("page.html.j2").render(
        document=document, title=title, policy=policy, **parts
    )


def _read(name: str) -> Markup:
    # Our own files, so no escaping; a test looks whether one of them could end its element.
    return Markup(files(_PACKAGE).joinpath(name).read_text(encoding="utf-8"))


def _hashes(texts: list[Markup]) -> str:
    digests = (hashlib.sha256(text.encode()).digest() for text in texts)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
