"""The page around a document: one self-contained HTML file."""

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

    Only our scripts can run: the page's policy names the hash of each. The document is data and is
    read as JSON.

    Args:
        document: JSON-ready, see `mpcompile.show.html_report.document.document`.
        title: any text.
    """
    environment = Environment(
        loader=PackageLoader(_PACKAGE, "page"), autoescape=True, undefined=StrictUndefined
    )
    # Numbers that are not finite are not JSON: an error is better than a page that does not open.
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
    # These are our own files, so no escaping; a test checks that none can close its element.
    return Markup(files(_PACKAGE).joinpath(name).read_text(encoding="utf-8"))


def _hashes(texts: list[Markup]) -> str:
    digests = (hashlib.sha256(text.encode()).digest() for text in texts)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
