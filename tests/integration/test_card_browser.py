"""The card's page in a real browser, on a phone's width; and what it asks for while it loads.

The browser reaches the world only through a proxy of ours, which serves two pages and writes
down every request.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from card_rig import card, outcome

from veilrun.attacks.card import Card
from veilrun.attacks.card_html import card_html
from veilrun.attacks.levels import Level

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome-headless-shell")
HOST = "card.example"
OWN = re.compile(
    r"(http://)?((update|clientservices|optimizationguide-pa|content-autofill)\.googleapis"
    r"|(accounts|clients\d?|www|redirector|edgedl\.me)\.(google|gvt1))\.com[:/]"
)
"""The browser's maker, whom it asks for time and updates whatever the page."""
FRAME = """<!doctype html><meta charset="utf-8"><body style="margin:0">
<iframe src="/card.html" width="{width}" height="{height}" style="border:0;display:block"></iframe>
<script>
const frame = document.querySelector("iframe");
frame.onload = () => {{
  const page = frame.contentDocument, root = page.documentElement;
  const seen = (element) => {{
    const box = element.getBoundingClientRect();
    return box.width > 1 && box.height > 1 && box.left >= 0 && box.right <= root.clientWidth + 0.5;
  }};
  const rows = [...page.querySelectorAll("tbody tr:not(.group)")];
  const result = {{
    scrollWidth: root.scrollWidth, clientWidth: root.clientWidth,
    body: page.body.scrollWidth,
    rows: rows.filter((row) => [...row.children].every(
      (cell) => cell.matches(".empty") || seen(cell))).length,
    outside: [...page.body.querySelectorAll("*")].filter(
      (one) => one.getBoundingClientRect().right > root.clientWidth + 0.5
        && !one.closest("thead")).length,
    smallest: Math.min(...[...page.querySelectorAll("td, th, p, dd")].map(
      (one) => parseFloat(getComputedStyle(one).fontSize))),
    text: page.body.innerText,
  }};
  const pre = document.createElement("pre");
  pre.textContent = JSON.stringify(result);
  document.body.replaceChildren(pre);
}};
</script>"""


@pytest.fixture(scope="session")
def browser() -> str:
    for name in BROWSERS:
        if found := shutil.which(name):
            return found
    pytest.skip("no headless Chromium on PATH")


class World:
    """A proxy that is all the world there is. requests: method and address of each."""

    def __init__(self) -> None:
        self.pages: dict[str, str] = {}
        self.requests: list[str] = []
        world = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                world.requests.append(self.path)
                body = world.pages.get(self.path.removeprefix(f"http://{HOST}"))
                self.send_response(404 if body is None else 200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.end_headers()
                self.wfile.write((body or "").encode())

            def do_CONNECT(self) -> None:
                world.requests.append(self.path)
                self.send_error(403)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def strangers(self) -> list[str]:
        """Requests for anything but the pages, without those that the browser makes by itself."""
        known = {f"http://{HOST}{path}" for path in (*self.pages, "/favicon.ico")}
        return [one for one in self.requests if one not in known and not OWN.match(one)]


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def browse(browser: str, world: World, tmp_path: Path, page: str, *options: str) -> str:
    command = [
        browser,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        "--hide-scrollbars",
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--proxy-server=http://127.0.0.1:{world.server.server_address[1]}",
        "--proxy-bypass-list=<-loopback>",
        "--virtual-time-budget=3000",
        *options,
        f"http://{HOST}{page}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return done.stdout


def measured(
    browser: str, world: World, tmp_path: Path, width: int = 390, height: int = 844
) -> dict[str, object]:
    """What the page is like in a frame of that size."""
    world.pages["/frame.html"] = FRAME.format(width=width, height=height)
    dump = browse(browser, world, tmp_path, "/frame.html", "--dump-dom")
    found = re.search(r"<pre>(.*)</pre>", dump, re.DOTALL)
    assert found is not None, dump[:500]
    result: dict[str, object] = json.loads(html.unescape(found[1]))
    return result


def wide() -> Card:
    """A card whose names have no place to break."""
    long = "W" * 90
    made = card(
        outcome(long, Level.BASE, 0.987654, failed=None),
        outcome("failing", Level.BASE, None, failed=f"ValueError: {long}"),
        model=f"organisation/{long}",
        mode=long,
    )
    return made


@pytest.mark.slow
@pytest.mark.parametrize("width", [320, 390, 700, 1280])
def test_nothing_scrolls_sideways_and_every_row_is_seen(browser, world, tmp_path, width: int):
    for made in (card(), wide()):
        world.pages["/card.html"] = card_html(made)
        found = measured(browser, world, tmp_path, width)
        assert found["clientWidth"] == width
        assert found["scrollWidth"] == found["body"] == width, found
        assert found["outside"] == 0, found
        assert found["rows"] == len(made.outcomes)
        assert found["smallest"] >= 11.5
        text = " ".join(str(found["text"]).split())
        for one in made.attacks:
            assert one.title in text and one.stops in text
        assert "100 %" in text or "98.8 %" in text
        assert world.strangers == []


@pytest.mark.slow
def test_a_page_that_is_too_wide_or_asks_for_something_is_noticed(browser, world, tmp_path):
    """The checks above can fail."""
    outside = '<img src="http://elsewhere.example/x.png" width="900" height="9">'
    page = card_html(card()).replace("</main>", outside + "</main>")
    world.pages["/card.html"] = page
    found = measured(browser, world, tmp_path)
    assert found["scrollWidth"] != 390 and found["outside"] != 0
    assert world.strangers == []  # the page's own policy forbids it
    world.pages["/card.html"] = re.sub(r"<meta http-equiv[^>]*>", "", page)
    measured(browser, world, tmp_path)
    assert world.strangers == ["http://elsewhere.example/x.png"]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_screenshot_is_not_blank(browser, world, tmp_path, scheme: str):
    options = ["--window-size=1200,1400"]
    options += ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    world.pages |= {"/card.html": card_html(card()), "/blank.html": "<!doctype html>"}
    sizes = {}
    for page in ("/card.html", "/blank.html"):
        picture = tmp_path / f"{page[1:]}.png"
        browse(browser, world, tmp_path, page, f"--screenshot={picture}", *options)
        sizes[page] = picture.stat().st_size
    assert sizes["/card.html"] > 10 * sizes["/blank.html"]
