"""A stand-in for a proxy worker: returns what nginx sent, streams slowly or until it is told to end, hangs, and dies of poison.

`echo_proxy.py ADDRESS PORT`, on a lab host.
"""

import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# Once set, held streams end.
RELEASED = threading.Event()


class Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.tell(b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if b'"poison"' in body:
            os._exit(1)
        if b'"hang"' in body:
            time.sleep(120)
        if b'"release"' in body:
            RELEASED.set()
        if b'"held"' in body:
            self.stream(itertools.takewhile(lambda _: not RELEASED.wait(1), itertools.count()))
        elif b'"stream"' in body:
            self.stream(number for number in range(5) if not time.sleep(0.2 * bool(number)))
        else:
            self.tell(body)

    def tell(self, body: bytes) -> None:
        seen = {
            "path": self.path,
            "headers": {name.lower(): value for name, value in self.headers.items()},
            "body_bytes": len(body),
            "connection": self.client_address[1],
            "worker": self.server.server_address[1],
        }
        answer = json.dumps(seen).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.send_header("X-Request-Id", "the proxy's own")
        self.end_headers()
        self.wfile.write(answer)

    def stream(self, numbers: Iterable[int]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in numbers:
            event = f"data: {number}\n\n".encode()
            self.wfile.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")


class Server(ThreadingHTTPServer):
    request_queue_size = 128


if __name__ == "__main__":
    Server((sys.argv[1], int(sys.argv[2])), Echo).serve_forever()
