"""Texts that act as code if they are not escaped: markup, scripts, terminal codes, names."""

from __future__ import annotations

import random

CANARY = "window.canary"
"""The variable that every script among them sets."""
_SET = f"{CANARY}=1"
_SEEDS = (
    f"<script>{_SET}</script>",
    f"</script><script>{_SET}</script>",
    f"</SCRIPT ><svg/onload={_SET}>",
    f"<!--<script>{_SET}</script>",
    "<!-- <script>",
    "-->",
    f"<img src=x onerror={_SET}>",
    f"<img src='http://127.0.0.1:9/x.png' onerror=\"{_SET}\">",
    f"<iframe srcdoc='<script>parent.{CANARY}=1</script>'>",
    f'" onmouseover="{_SET}" autofocus onfocus="{_SET}',
    f"' onclick='{_SET}' x='",
    f"javascript:{_SET}",
    f"data:text/html,<script>{_SET}</script>",
    f"<a href='javascript:{_SET}'>click</a>",
    "<style>@import 'http://127.0.0.1:9/x.css';*{display:none}</style>",
    "<base href='http://127.0.0.1:9/'>",
    "<meta http-equiv=refresh content='0;url=http://127.0.0.1:9/'>",
    f"{{{{constructor.constructor('{_SET}')()}}}}",
    "{{ config.__class__ }}{% raw %}",
    f"${{{_SET}}}",
    f"`{_SET}`",
    f"\\u003cscript\\u003e{_SET}",
    f"&lt;script&gt;{_SET}",
    "&#x3c;b&#x3e;",
    "]]><![CDATA[",
    "__proto__",
    "constructor",
    "hasOwnProperty",
    "toString",
    "undefined",
    "data(label)",
    "#n0, node[id]",
    "\x00nothing\x00",
    "\x1b]0;title\x07\x1b[31m",
    "\u202egpj.exe",
    "\u2066left\u2069",
    "line\u2028break\u2029",
    "two\nlines\r\nand\ttab",
    "\ud800 alone",
    "مرحبا",
    "名前",
    "🙂" * 40,
    "é" * 300,
    "a" * 20_000,
    "a/b\\c:d?e#f%00%",
    "'; DROP TABLE nodes; --",
    "=1+1",
    " ",
    "",
    "....",
)


def hostile_texts(count: int) -> list[str]:
    """Return `count` different texts, the same ones in each call."""
    rng = random.Random(0)
    found = dict.fromkeys(_SEEDS)
    while len(found) < count:
        parts = rng.sample(_SEEDS, rng.randint(2, 3))
        text = rng.choice(("", " ", ".", "/", "\n")).join(part[:400] for part in parts)
        found[text] = None
    return list(found)[:count]
