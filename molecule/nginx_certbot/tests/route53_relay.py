"""A relay before the lab's AWS: what is written into Route 53 is also answered by the DNS server that the lab's CA asks."""

from __future__ import annotations

import json
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# As in a change of record sets: the action, the name and, in quotes, the value.
CHANGE = re.compile(r"<Action>(\w+)</Action>.*?<Name>([^<]+)</Name>.*?<Value>(?:&quot;|\")([^<&\"]+)", re.DOTALL)


@contextmanager
def route53_relay(address: str, aws: str, dns: str) -> Iterator[str]:
    """Serve at `address`, which lab hosts reach, and pass everything on to `aws`. Yields the relay's URL."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    class Relay(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.relay(None)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            for action, name, value in CHANGE.findall(body.decode(errors="replace")):
                told = {"host": name.rstrip(".") + ".", "value": value}
                path = "clear-txt" if action == "DELETE" else "set-txt"
                opener.open(urllib.request.Request(f"{dns}/{path}", data=json.dumps(told).encode()), timeout=10).close()
            self.relay(body)

        def relay(self, body: bytes | None) -> None:
            headers = {name: value for name, value in self.headers.items() if name.lower() != "accept-encoding"}
            # Without one, urllib would call the body a form, which is another of AWS's protocols.
            headers = {"Content-Type": "application/xml", **headers}
            request = urllib.request.Request(aws + self.path, data=body, headers=headers, method=self.command)
            try:
                answer = opener.open(request, timeout=30)
            except urllib.error.HTTPError as error:
                answer = error
            content = answer.read()
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.headers.get("Content-Type", "text/xml"))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """The test's output has no requests."""

    server = ThreadingHTTPServer((address, 0), Relay)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://{address}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
