"""RudderStack's and Segment's JavaScript SDKs, from npm, send their events to the sidecar, which uploads them.

`make sdks` installs them; without it these tests are skipped. The browser is jsdom, which sends preflights as browsers do, and
Chromium where it is installed.
"""

from __future__ import annotations

import contextlib
import http.server
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from buckets import events, file_environment
from places import ROOT, TESTS
from serving import Sidecar, serve

HERE: Final = TESTS / "javascript"
BUILD: Final = ROOT / "build/sdks"
SDK: Final = BUILD / "node_modules/@rudderstack/analytics-js/dist/npm/modern/bundled/umd/index.js"
NODE: Final = shutil.which("node")
CHROMIUM: Final = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WRITE_KEYS: Final = "2abcKEY=web"
CALLS: Final = {"track": 20, "identify": 1, "page": 1, "group": 1, "alias": 1}

if NODE is None or not (BUILD / "installed").exists():
    pytest.skip("there is no build/sdks/installed, or no node: make sdks", allow_module_level=True)


@pytest.fixture
def site() -> Iterator[str]:
    """Serve a web site of another origin than the sidecar; return its URL."""
    files = {"/": HERE / "page.html", "/sdk.js": SDK}

    class Handler(http.server.SimpleHTTPRequestHandler):
        def translate_path(self, path: str) -> str:
            return str(files.get(path.partition("?")[0], HERE / "nothing"))

        def guess_type(self, path: Any) -> str:
            return "text/javascript" if str(path).endswith(".js") else "text/html"

        def log_message(self, *_: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def visit(url: str, browser: str | None) -> Iterator[None]:
    command = [str(NODE), "visit.mjs", url, *([browser] if browser else [])]
    with subprocess.Popen(
        command, cwd=BUILD, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            yield
        finally:
            process.communicate(timeout=120)  # ends its standard input


def recorded(sidecar: Sidecar) -> int:
    page = sidecar.get("/metrics").body.decode()
    return int(
        float(next((line.split()[-1] for line in page.splitlines() if line.startswith("jobs_backup_recorded_events_total")), "0"))
    )


def wait_for(sidecar: Sidecar, count: int) -> None:
    deadline = time.monotonic() + 120
    while recorded(sidecar) < count and time.monotonic() < deadline:
        time.sleep(0.1)


def browsers() -> list[Any]:
    missing = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
    return [pytest.param(None, id="jsdom"), pytest.param(CHROMIUM, id="chromium", marks=missing)]


def found_in(directory: Path) -> dict[str, int]:
    found = events(directory)
    assert len({event["messageId"] for event in found}) == len(found), "each once"
    tracked = sorted(event["payload"]["properties"]["number"] for event in found if event["payload"]["type"] == "track")
    assert tracked == list(range(len(tracked)))
    assert all(event["payload"]["properties"]["note"] == "Zé" for event in found if event["payload"]["type"] == "track")
    assert {path.relative_to(directory / "bucket").parts[0] for path in directory.rglob("*.json.gz")} <= {"web"}
    return dict(Counter(event["payload"]["type"] for event in found))


@pytest.mark.slow
@pytest.mark.parametrize("browser", browsers())
def test_the_browser_sdk_sends_its_events(tmp_path: Path, site: str, browser: str | None) -> None:
    keys = {"JOBS_BACKUP_SERVER_WRITE_KEYS": WRITE_KEYS, "JOBS_BACKUP_SERVER_CORS_ORIGINS": f"https://other.example,{site}"}
    with serve({**file_environment(tmp_path), **keys}) as sidecar:
        with visit(f"{site}/?key=2abcKEY&url={sidecar.url}/", browser):
            wait_for(sidecar, sum(CALLS.values()))
        assert sidecar.end()[0] == 0
    assert found_in(tmp_path) == CALLS


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium, and jsdom has no sendBeacon")
def test_the_browser_sdk_sends_beacons(tmp_path: Path, site: str) -> None:
    with serve(file_environment(tmp_path), JOBS_BACKUP_SERVER_WRITE_KEYS=WRITE_KEYS) as sidecar:
        with visit(f"{site}/?key=2abcKEY&beacon=1&url={sidecar.url}", CHROMIUM):
            wait_for(sidecar, sum(CALLS.values()))
        sidecar.end()
    assert found_in(tmp_path) == CALLS


@pytest.mark.slow
@pytest.mark.parametrize("browser", browsers())
def test_a_page_of_another_origin_sends_nothing(tmp_path: Path, site: str, browser: str | None) -> None:
    keys = {"JOBS_BACKUP_SERVER_WRITE_KEYS": WRITE_KEYS, "JOBS_BACKUP_SERVER_CORS_ORIGINS": "https://other.example"}
    with serve({**file_environment(tmp_path), **keys}) as sidecar:
        with visit(f"{site}/?key=2abcKEY&url={sidecar.url}", browser):
            deadline = time.monotonic() + 120
            while b'status="403"' not in sidecar.get("/metrics").body and time.monotonic() < deadline:
                time.sleep(0.1)
        assert b'status="403"' in sidecar.get("/metrics").body, "it has tried"
        sidecar.end()
    assert events(tmp_path) == []


@pytest.mark.parametrize(("sdk", "packing"), [("rudder", "plain"), ("rudder", "gzip"), ("segment", "plain")])
def test_the_sdks_for_node_send_their_events(tmp_path: Path, sdk: str, packing: str) -> None:
    with serve(file_environment(tmp_path), JOBS_BACKUP_SERVER_WRITE_KEYS=WRITE_KEYS) as sidecar:
        command = [str(NODE), "send.mjs", sdk, sidecar.url, "2abcKEY", packing]
        result = subprocess.run(command, cwd=BUILD, capture_output=True, text=True, check=False, timeout=100)
        assert result.returncode == 0, result.stderr
        wait_for(sidecar, 25)
        sidecar.end()
    assert found_in(tmp_path) == {**CALLS, "screen": 1}
