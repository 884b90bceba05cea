"""A stand-in for a proxy worker: returns what nginx sent, streams slowly, hangs, and dies of poison.

`echo_proxy.py ADDRESS PORT`, on a lab host.
"""

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


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
        if b'"stream"' in body:
            self.stream()
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

    def stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in range(5):
            event = f"data: {number}\n\n".encode()
            self.wfile.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")
            time.sleep(0.2)
        self.wfile.write(b"0\r\n\r\n")


if __name__ == "__main__":
    ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Echo).serve_forever()
