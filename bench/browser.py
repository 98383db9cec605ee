"""Open a file in the system's headless Chromium, without a network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--no-sandbox",  # Chromium refuses to start with its sandbox as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_READY = "document.documentElement.dataset.ready !== undefined"
PATIENCE = 60_000  # milliseconds until an event that does not come is an error


def chromium() -> str | None:
    """Return the path of a Chromium, or None if there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def browser() -> Iterator[Browser]:
    """Start a Chromium with an empty profile; end it afterwards."""
    path = chromium()
    if path is None:
        raise RuntimeError(f"there is no {NAMES[0]} on the path: apt-get install chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=list(_FLAGS))
        try:
            yield started
        finally:
            started.close()


def open_report(
    started: Browser,
    file: Path,
    scheme: Literal["light", "dark"] = "light",
    size: tuple[int, int] = (1600, 950),
    leaving: list[str] | None = None,
) -> Page:
    """Return the page of a report that is ready for use; all its network requests fail.

    Args:
        started: the browser.
        file: the report.
        scheme: which colours the user prefers.
        size: of the window, in pixels.
        leaving: receives the address of each request, except the file's.
    """
    context = started.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, offline=True
    )
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    address = file.resolve().as_uri()
    if leaving is not None:
        page.on(
            "request", lambda asked: leaving.append(asked.url) if asked.url != address else None
        )
    page.goto(address)
    page.wait_for_function(_READY)
    return page
