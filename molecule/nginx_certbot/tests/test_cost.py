"""What the role's nginx costs beside a bare `proxy_pass`: the CPU time of the workers, per request and per event of a stream.

Both run on web1 with the same certificate, the same number of workers and the same two proxies. Blocks of load alternate between them, so that
both meet the same neighbours on the machine.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest
from helpers.stack import ssh
from test_nginx_certbot import ADDRESS, DOMAIN, PROXY_PORTS, TRUST, converge, start_proxy

# All that is counted or compared for each request. What would refuse this load is set above it.
EVERYTHING = {
    "nginx_certbot_requests_per_second": 100_000,
    "nginx_certbot_requests_burst": 100_000,
    "nginx_certbot_connections_per_ip": 10_000,
    "nginx_certbot_key_requests_per_second": 100_000,
    "nginx_certbot_key_connections": 10_000,
    "nginx_certbot_allow_cidrs": ["10.0.0.0/8", "192.0.2.0/24"],
    "nginx_certbot_deny_cidrs": [f"198.51.100.{number}/32" for number in range(200)],
    "nginx_certbot_path_cidrs": [{"path": "/v1/models", "cidrs": ["10.0.0.0/8"]}],
    "nginx_certbot_cors_origins": ["https://app.example.com"],
    "nginx_certbot_client_certificates": "optional",
    # Any CA will do: no client has a certificate.
    "nginx_certbot_client_ca_file": "/etc/nginx/ec2-inference/placeholder/fullchain.pem",
    "nginx_certbot_hsts_preload": True,
}
BARE_PORT = 8443
BARE = """
user www-data;
worker_processes 2;
pid /run/bare-nginx.pid;
error_log /run/bare-nginx.log;
events { worker_connections 4096; }
http {
    access_log /run/bare-nginx-access.log;
    upstream proxies { zone proxies 256k; %(servers)s keepalive 64; }
    server {
        listen %(port)d ssl;
        server_name %(name)s;
        ssl_certificate /etc/letsencrypt/live/ec2-inference/fullchain.pem;
        ssl_certificate_key /etc/letsencrypt/live/ec2-inference/privkey.pem;
        location / {
            proxy_pass http://proxies;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }
    }
}
"""
REQUESTS, CONNECTIONS = 100, 8
EVENTS, STREAMS = 200, 40
ROUNDS = 12
# As an SDK sends them.
HEADERS = (
    "Host: {name}\r\nAccept: application/json\r\nAccept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\n"
    "Content-Type: application/json\r\nUser-Agent: AsyncOpenAI/Python 2.8.0\r\nX-Stainless-Lang: python\r\n"
    "X-Stainless-Package-Version: 2.8.0\r\nX-Stainless-OS: Linux\r\nX-Stainless-Arch: x64\r\n"
    "X-Stainless-Runtime: CPython\r\nX-Stainless-Runtime-Version: 3.11.7\r\nX-Stainless-Async: async:asyncio\r\n"
    "Authorization: Bearer a-key-of-somebody-0123456789\r\nx-stainless-retry-count: 0\r\n"
)


def request(**body: object) -> bytes:
    text = json.dumps({"model": "m", "messages": [{"role": "user", "content": "word " * 60}], **body})
    head = f"POST /v1/chat/completions HTTP/1.1\r\n{HEADERS.format(name=DOMAIN)}Content-Length: {len(text)}\r\n\r\n"
    return (head + text).encode()


async def work(port: int, connections: int, requests: int, body: bytes) -> None:
    """The same request, over and over, on some connections at the same time."""

    async def client() -> None:
        reader, writer = await asyncio.open_connection(ADDRESS["web1"], port, ssl=TRUST, server_hostname=DOMAIN)
        for _ in range(requests):
            writer.write(body)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert head.startswith(b"http/1.1 200 "), head
            if b"chunked" in head:
                while size := int(await reader.readuntil(b"\r\n"), 16):
                    await reader.readexactly(size + 2)
                await reader.readexactly(2)
            else:
                await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(client() for _ in range(connections)))


def cpu_ns(master_pid: str) -> int:
    """CPU time of all workers of one nginx."""
    return sum(
        int(line.split()[0])
        for line in ssh("web1", f"pgrep -P {master_pid} | sed 's|.*|/proc/&/schedstat|' | xargs cat").splitlines()
    )


@pytest.fixture(scope="module")
def both() -> Iterator[dict[int, str]]:
    """Ports and master processes of the two nginx: the role's with everything switched on, and the bare one."""
    servers = " ".join(f"server {ADDRESS['api1']}:{port};" for port in PROXY_PORTS)
    config = BARE % {"servers": servers, "port": BARE_PORT, "name": DOMAIN}
    try:
        for port in PROXY_PORTS:
            start_proxy(port, "quick_proxy.py")
        converge("--limit", "web1", variables=EVERYTHING)
        ssh("web1", f"printf '%s' '{config}' > /run/bare-nginx.conf && nginx -q -c /run/bare-nginx.conf")
        yield {
            port: ssh("web1", f"cat /run/{pid}.pid").strip()
            for port, pid in ((443, "nginx"), (BARE_PORT, "bare-nginx"))
        }
    finally:
        ssh("web1", "kill $(cat /run/bare-nginx.pid) || true; rm -f /run/bare-nginx*")
        ssh("api1", "systemctl stop 'echo-*'")
        converge("--limit", "web1")


@pytest.mark.parametrize(
    ("unit", "connections", "requests", "body", "units"),
    [
        ("request", CONNECTIONS, REQUESTS, request(), CONNECTIONS * REQUESTS),
        ("event", STREAMS, 1, request(stream=True, events=EVENTS), STREAMS * EVENTS),
    ],
    ids=["per request", "per event"],
)
def test_everything_costs_little_more_than_a_bare_proxy_pass(
    both: dict[int, str], unit: str, connections: int, requests: int, body: bytes, units: int
) -> None:
    spent = dict.fromkeys(both, 0)
    for port in both:
        asyncio.run(work(port, connections, 1, body))
    for _ in range(ROUNDS):
        for port, master in both.items():
            before = cpu_ns(master)
            asyncio.run(work(port, connections, requests, body))
            spent[port] += cpu_ns(master) - before
    each_us = {port: ns / 1000 / units / ROUNDS for port, ns in spent.items()}
    ratio = each_us[443] / each_us[BARE_PORT]
    print(f"per {unit}: {each_us[443]:.1f} us with everything, {each_us[BARE_PORT]:.1f} us bare, ratio {ratio:.3f}")
    # docs/performance.md has the goal and the figures; neighbours on the machine may move one run's ratio by a few tenths.
    assert ratio < 2, each_us
