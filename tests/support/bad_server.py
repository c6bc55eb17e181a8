"""A server on this machine that misbehaves in every way we know."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

CONTENT = np.random.default_rng(0).bytes(200_000)
HASH = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves `content`; the first part of the path says how; `asked` notes the ranges asked for."""

    content: bytes
    asked: list[str | None]
    ends: threading.Event

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        way = self.path.split("/")[1]
        self.asked.append(self.headers.get("Range"))
        getattr(self, way)()

    def answer(self, body: bytes, status: int = 200, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def start(self) -> int:
        return int((self.headers.get("Range") or "bytes=0-")[6:-1])

    def part(self, body: bytes, start: int) -> None:
        self.answer(
            body,
            206,
            len(self.content) - start,
            Content_Range=f"bytes {start}-{len(self.content) - 1}/{len(self.content)}",
        )

    def good(self) -> None:
        self.answer(self.content)

    def truncating(self) -> None:  # sends 60 000 bytes of what is left, each time
        start = self.start()
        self.part(self.content[start : start + 60_000], start) if start else self.answer(
            self.content[:60_000], length=len(self.content)
        )

    def without_ranges(self) -> None:
        self.answer(self.content[:60_000] if len(self.asked) == 1 else self.content, length=len(self.content))

    def wrong_place(self) -> None:
        if self.start():
            self.answer(
                self.content[:10],
                206,
                len(self.content) - self.start(),
                Content_Range=f"bytes 7-{len(self.content)}/{len(self.content)}",
            )
        else:
            self.answer(self.content[:60_000], length=len(self.content))

    def corrupting(self) -> None:
        self.answer(self.content[:-1] + bytes([self.content[-1] ^ 1]))

    def stalling(self) -> None:
        self.answer(self.content[:1000], length=len(self.content))
        self.wfile.flush()
        self.ends.wait(20)

    def dripping(self) -> None:
        self.answer(b"", length=len(self.content))
        for index in range(200):
            if self.ends.wait(0.05):
                break
            try:
                self.wfile.write(self.content[index : index + 1])
                self.wfile.flush()
            except OSError:
                break

    def longer(self) -> None:
        self.answer(self.content + b"more", length=len(self.content) + 4)

    def endless(self) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            for _ in range(100):
                self.wfile.write(self.content)
        except OSError:
            pass

    def shorter(self) -> None:
        self.answer(self.content[:500])

    def error_page(self) -> None:
        self.answer(b"<html>please log in</html>", Content_Type="text/html")

    def missing(self) -> None:
        self.answer(b"no", 404)

    def elsewhere(self) -> None:
        self.answer(b"", 302, Location="http://localhost:9/good/file.bin")

    def to_file(self) -> None:
        self.answer(b"", 302, Location="file:///etc/passwd")

    def loop(self) -> None:
        self.answer(b"", 302, Location="/loop/file.bin")

    def moved(self) -> None:
        self.answer(b"", 302, Location="/good/file.bin")

    def hanging_up(self) -> None:
        self.connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def serving(content: bytes = CONTENT) -> Iterator[tuple[str, list[str | None]]]:
    """Address of a running server, and the ranges it is asked for."""
    asked: list[str | None] = []
    handler = type("Serving", (Handler,), {"content": content, "asked": asked, "ends": threading.Event()})
    running = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    running.daemon_threads = True
    running.handle_error = lambda *a: None  # a client that hangs up is what some tests want
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_port}", asked
    finally:
        handler.ends.set()
        running.shutdown()
        running.server_close()
