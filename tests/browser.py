"""A headless Chromium that renders a page, where one is installed."""

from __future__ import annotations

import pathlib
import shutil
import subprocess

import pytest

_NAMES = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")
_LIMIT_S = 120.0
_OVERFLOWS = """<script>
addEventListener("load", () => {
  const scrolls = (each) => each.scrollWidth > each.clientWidth + 1
    && getComputedStyle(each).overflowX !== "visible";
  const wide = [...document.querySelectorAll("body *")].filter(
    (each) => scrolls(each) || each.getBoundingClientRect().right > innerWidth + 1);
  const names = wide.map((each) => each.tagName + "." + each.className);
  document.documentElement.dataset.clipped = names.slice(0, 5).join(" ");
});
</script>"""


def rendered(url: str, *, width: int, virtual_ms: int = 2_000) -> str:
    """Returns a page's document after its scripts ran, at a window of ``width`` pixels.

    Skips the test where no Chromium is installed.
    """
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no headless browser: none of {', '.join(_NAMES)} is installed")
    done = subprocess.run(
        [
            found, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            f"--window-size={width},1000", f"--virtual-time-budget={virtual_ms}", "--dump-dom", url,
        ],
        capture_output=True, text=True, timeout=_LIMIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def clipped(page: str, folder: pathlib.Path, *, width: int) -> str:
    """Returns which elements of a page without scripts are cut off at a width; empty if none is."""
    path = folder / "with-check.html"
    path.write_text(page.replace("</body>", f"{_OVERFLOWS}</body>"), encoding="utf-8")
    dom = rendered(path.as_uri(), width=width)
    mark = 'data-clipped="'
    assert mark in dom, "the page's script did not run"
    return dom.split(mark)[1].split('"')[0]
