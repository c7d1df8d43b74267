"""A file server on this machine that misbehaves on request, for the tests of downloads."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class FaultyServer:
    """Serves `files`; a path in `faults` misbehaves for as many requests as its list is long, then behaves."""

    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)
    without_ranges: bool = False
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    """(path, Range header) of every request"""
    sent: Counter[str] = field(default_factory=Counter)
    """bytes of body sent per path"""
    address: str = ""
    patience_seconds: float = 5.0
    """how long a stalled request hangs before the server gives up too"""

    def url(self, path: str) -> str:
        return f"{self.address}/{path}"


@contextlib.contextmanager
def serve(server: FaultyServer) -> Iterator[FaultyServer]:
    done = threading.Event()
    http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"served": server, "done": done}))
    http.daemon_threads = True
    server.address = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        done.set()
        http.shutdown()
        http.server_close()


class _Handler(BaseHTTPRequestHandler):
    """Answers as the lists of faults say."""

    served: FaultyServer
    done: threading.Event
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.lstrip("/")
        wanted_range = self.headers.get("Range")
        self.served.requests.append((path, wanted_range))
        fault = self.served.faults.get(path, [])
        kind = fault.pop(0) if fault else ""
        if path in self.served.redirects:
            return self.bare(302, Location=self.served.redirects[path])
        if kind.isdigit():
            return self.bare(int(kind), **({"Retry-After": "0"} if kind == "429" else {}))
        if path not in self.served.files:
            return self.bare(404)
        if kind == "page":
            return self.body(b"<html>please log in</html>", 0, {"Content-Type": "text/html; charset=utf-8"}, 200)
        self.send_file(path, kind, wanted_range)

    def bare(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send_file(self, path: str, kind: str, wanted_range: str | None) -> None:
        content, headers = self.served.files[path], {}
        etag = self.served.etags.get(path)
        if etag:
            headers["ETag"] = etag
        start, status = 0, 200
        same = self.headers.get("If-Range") in (None, etag)
        if wanted_range and not self.served.without_ranges and same:
            start = int(wanted_range.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                return self.bare(416)
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        body = content[start:]
        if kind == "corrupt":
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 0xFF]) + body[middle + 1 :]
        self.body(body, {"truncate": 2, "stall": 3, "trickle": 4}.get(kind, 0), headers, status, kind)
        self.served.sent[path] += len(body)

    def body(self, body: bytes, cut: int, headers: dict[str, str], status: int, kind: str = "") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if kind == "nolength":
            self.send_header("Connection", "close")
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body[: len(body) // cut] if cut else body)
            if kind == "truncate":
                self.close_connection = True
            if kind == "stall":
                self.done.wait(self.served.patience_seconds)
                self.close_connection = True
            if kind == "trickle":
                self.trickle(body[len(body) // cut :])

    def trickle(self, rest: bytes) -> None:
        self.close_connection = True
        until = time.monotonic() + self.served.patience_seconds
        for byte in rest:
            if self.done.wait(0.02) or time.monotonic() > until:
                return
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
