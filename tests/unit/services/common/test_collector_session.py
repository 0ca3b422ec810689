"""The session by which spans go to a collector over HTTP."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from services.common.collector_session import CollectorSession
from tests.waiting import LIMIT_S, until_sync

PIECE = bytes(65_536)


class Collector(BaseHTTPRequestHandler):
    """Answers by the path that is asked for."""

    protocol_version = "HTTP/1.1"
    connections: set[tuple[str, int]]
    ended: list[str]

    def do_POST(self) -> None:
        """Answers shortly, without an end, packed, or with another place."""
        self.connections.add(self.client_address)
        self.rfile.read(int(self.headers["Content-Length"]))
        kind = self.path.strip("/")
        packed = zlib.compress(bytes(2**24), wbits=31)
        body = {"short": b"{}", "packed": packed, "elsewhere": PIECE}.get(kind, b"")
        self.send_response(302 if kind == "elsewhere" else 200)
        self.send_header("Set-Cookie", "a=b")
        if kind == "elsewhere":
            self.send_header("Location", "/short")
        if kind == "packed":
            self.send_header("Content-Encoding", "gzip")
        if kind != "endless":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            self.wfile.write(body)
            while kind == "endless":
                self.wfile.write(PIECE)
        except OSError:
            self.ended.append(kind)
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    """A collector."""
    Collector.connections, Collector.ended = set(), []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join(LIMIT_S)


@pytest.mark.parametrize("kind", ["empty", "short", "packed", "elsewhere", "endless"])
def test_an_answer_is_its_status(url: str, kind: str) -> None:
    """Whatever comes with it is not unpacked, nor waited for; nothing is kept of it."""
    with CollectorSession(is_straight=True) as session:
        answer = session.post(f"{url}/{kind}", b"x", timeout=LIMIT_S, allow_redirects=False)
        assert answer.status_code == (302 if kind == "elsewhere" else 200)
        assert not session.cookies
        if kind == "endless":
            until_sync(lambda: Collector.ended, "the collector is not listened to any more")


@pytest.mark.parametrize("kind", ["empty", "short"])
def test_a_connection_is_used_again(url: str, kind: str) -> None:
    """Collectors answer shortly."""
    with CollectorSession(is_straight=True) as session:
        for _ in range(3):
            session.post(f"{url}/{kind}", b"x", timeout=LIMIT_S, allow_redirects=False)
    assert len(Collector.connections) == 1
