"""The lab's stand-in for EC2's instance metadata (version 2 only), and for the three calls to Auto Scaling that an instance makes of itself.

    python imds.py --address 10.30.0.1 --port 1338

A host is told from another by its address, as on EC2. Tests set what it reads:

    curl -X PUT --data '{"action": "terminate", "time": "…"}' http://ADDRESS:1338/lab/10.30.0.13/spot/instance-action
    curl -X DELETE http://ADDRESS:1338/lab/10.30.0.13/spot/instance-action
    curl http://ADDRESS:1338/lab/calls            the calls to Auto Scaling so far
"""

from __future__ import annotations

import argparse
import json
import secrets
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ROLE = "lab"
GROUP = "engines"
CREDENTIALS = {
    "Code": "Success",
    "Type": "AWS-HMAC",
    "AccessKeyId": "lab",
    "SecretAccessKey": "secret-of-the-lab",
    "Token": "session-of-the-lab",
    "LastUpdated": "2026-01-01T00:00:00Z",
    "Expiration": "2099-01-01T00:00:00Z",
}
LIFECYCLE_STATE = "autoscaling/target-lifecycle-state"


def instance_id(address: str) -> str:
    """The id of the instance with this address."""
    return "i-" + "".join(f"{int(part):02x}" for part in address.split(".")).rjust(17, "0")


class Imds(ThreadingHTTPServer):
    """`documents` are what tests have set: texts by the host's address and the path. `calls` are those to Auto Scaling."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: str, port: int) -> None:
        super().__init__((address, port), Handler)
        self.documents: dict[tuple[str, str], str] = {}
        self.tokens: dict[str, tuple[str, float]] = {}
        self.calls: list[dict[str, str]] = []

    def document(self, address: str, path: str) -> str | None:
        """What the host reads there; None: there is nothing."""
        given = {
            "instance-id": instance_id(address),
            "placement/region": "us-east-1",
            "events/maintenance/scheduled": "[]",
            "iam/security-credentials/": ROLE,
            f"iam/security-credentials/{ROLE}": json.dumps(CREDENTIALS),
        }
        return self.documents.get((address, path), given.get(path))


class Handler(BaseHTTPRequestHandler):
    server: Imds
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing: each host asks four times in five seconds."""

    def do_PUT(self) -> None:
        body = self._body()
        if self.path != "/latest/api/token":
            address, _, path = self.path.removeprefix("/lab/").partition("/")
            self.server.documents[address, path] = body
            self._answer(200, "")
            return
        ttl_s = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
        if not ttl_s.isdigit() or not 1 <= int(ttl_s) <= 21600:
            self._answer(400, "Bad Request")
            return
        token = secrets.token_urlsafe(40)
        self.server.tokens[token] = self.client_address[0], time.monotonic() + int(ttl_s)
        self._answer(200, token)

    def do_DELETE(self) -> None:
        address, _, path = self.path.removeprefix("/lab/").partition("/")
        self.server.documents.pop((address, path), None)
        self._answer(200, "")

    def do_GET(self) -> None:
        if self.path == "/lab/calls":
            self._answer(200, json.dumps(self.server.calls))
            return
        own = self.client_address[0]
        address, ends = self.server.tokens.get(self.headers.get("X-aws-ec2-metadata-token", ""), ("", 0.0))
        if address != own or time.monotonic() >= ends:
            self._answer(401, "Unauthorized")
            return
        text = self.server.document(own, self.path.removeprefix("/latest/meta-data/"))
        self._answer(404, "Not Found") if text is None else self._answer(200, text)

    def do_POST(self) -> None:
        """Auto Scaling's Query API. An action can be completed while the instance waits to be terminated."""
        call = dict(urllib.parse.parse_qsl(self._body()))
        action, own = call["Action"], self.client_address[0]
        if action == "DescribeAutoScalingInstances":
            member = ""
            if (own, LIFECYCLE_STATE) in self.server.documents:
                names = {"InstanceId": instance_id(own), "AutoScalingGroupName": GROUP}
                member = "".join(f"<{name}>{value}</{name}>" for name, value in names.items())
                member = f"<member>{member}</member>"
            self._answer_call(action, f"<AutoScalingInstances>{member}</AutoScalingInstances>")
            return
        self.server.calls.append(call)
        if self.server.documents.get((own, LIFECYCLE_STATE)) == "Terminated":
            self._answer_call(action, "")
            return
        error = f"<Code>ValidationError</Code><Message>No active Lifecycle Action found with instance ID {instance_id(own)}</Message>"
        self._answer(
            400, f"<ErrorResponse><Error><Type>Sender</Type>{error}</Error><RequestId>0</RequestId></ErrorResponse>"
        )

    def _answer_call(self, action: str, result: str) -> None:
        self._answer(
            200,
            f'<{action}Response xmlns="http://autoscaling.amazonaws.com/doc/2011-01-01/"><{action}Result>{result}</{action}Result>'
            f"<ResponseMetadata><RequestId>0</RequestId></ResponseMetadata></{action}Response>",
        )

    def _body(self) -> str:
        return self.rfile.read(int(self.headers.get("Content-Length", "0"))).decode()

    def _answer(self, status: int, text: str) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def main() -> None:
    parser = argparse.ArgumentParser(description="A stand-in for EC2's instance metadata.")
    parser.add_argument("--address", required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    Imds(options.address, options.port).serve_forever()


if __name__ == "__main__":
    main()
