"""The web tier's templates, rendered from its variables. How nginx behaves with them is tested by the scenario nginx_certbot."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROLE = Path(__file__).parents[2] / "roles/nginx_certbot"
VARS = [ROLE / "defaults/main.yml", *sorted((ROLE / "vars/main").iterdir()), ROLE / "vars/Debian.yml"]
INVENTORY = {"nginx": {"hosts": {"web1": None}}, "proxy": {"hosts": {"api1": None}}}
BASE = {
    "stack_domain": "llm.example.com",
    "ansible_connection": "local",
    "ansible_python_interpreter": sys.executable,
    "ansible_facts": {"distribution": "Debian", "distribution_version": "13"},
    "proxy_api_versions": ["v1", "openai/v1"],
    "proxy_custom_endpoints": [
        {"path": "/v1/completions", "answer": {"body": "gone"}},
        {"path": "/v1/label", "upstream_path": "/classify"},
    ],
}
HERE = {"nginx": "1.26.3", "openssl": "3.5.1", "ipv6": True, "generation": 1}
ORIGINS = [
    "https://app.example.com",
    "http://localhost:3000",
    "http://127.0.0.1:8080",
    "https://[fd00::1]:8443",
    "app://obsidian.md",
    "chrome-extension://abcdefghijklmnop",
]
NO_ORIGINS = [
    "https://app.example.com/",
    "https://app.example.com/path",
    "app.example.com",
    "https://*.example.com",
    "https://App.example.com",
    "https://app.example.com:443",
    "http://app.example.com:80",
    "https://user@app.example.com",
    "https://app.example.com?x",
    'https://a" 1; } evil {',
    "https://a.example\n",
    "null",
    "",
]
# As if they had been added to the tables of headers and endpoints.
HEADER = {"name": "X-Permitted-Cross-Domain-Policies", "value": "none"}
ROUTE = {"path": "/images/generations", "class": "generation"}


def table(name: str) -> list[dict[str, Any]]:
    """One of the role's tables in vars/main/."""
    (found,) = (known[name] for path in VARS if name in (known := yaml.safe_load(path.read_text())))
    assert isinstance(found, list)
    return found


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "one more header": {
        "__nginx_certbot_headers": [*table("__nginx_certbot_headers"), HEADER],
        "nginx_certbot_cors_origins": ORIGINS,
    },
    "one more endpoint": {"__nginx_certbot_routes": [*table("__nginx_certbot_routes"), ROUTE]},
    "unsupported": {"__nginx_certbot_supported": False},
    "older": {"here": {"nginx": "1.22.1", "openssl": "3.0.17", "ipv6": False, "generation": 1}},
    "versions": {"__nginx_certbot_versions": ["v1", "v2"]},
    "listed": {"nginx_certbot_cors_origins": ORIGINS},
    "anybody": {"nginx_certbot_cors_origins": ["*"]},
    "wrong": {"nginx_certbot_cors_origins": [ORIGINS[0], *NO_ORIGINS]},
    "all and one": {"nginx_certbot_cors_origins": ["*", ORIGINS[0]]},
    "everything": {
        "nginx_certbot_key_requests_per_second": 5,
        "nginx_certbot_key_connections": 7,
        "nginx_certbot_allow_files": ["/etc/nginx/lists/own.conf"],
        "nginx_certbot_deny_files": ["/etc/nginx/lists/far.conf"],
        "nginx_certbot_path_cidrs": [
            {"path": "/v1", "cidrs": ["10.0.0.0/8"]},
            {"path": "/v1/models", "cidrs": ["192.0.2.0/24", "2001:db8::/32"]},
        ],
        "nginx_certbot_maintenance_s": 90,
        "nginx_certbot_real_ip_from": ["10.1.0.0/16"],
        "nginx_certbot_real_ip_header": "proxy_protocol",
        "nginx_certbot_hsts_preload": True,
        "nginx_certbot_tls_profile": "modern",
        "nginx_certbot_client_certificates": "required",
        "nginx_certbot_client_ca_file": "/etc/nginx/lists/ca.pem",
        "nginx_certbot_log_level": "info",
    },
    "http3": {"nginx_certbot_http3": True},
    "several": {
        "nginx_certbot_http3": True,
        "nginx_certbot_certificates": [
            {"name": "ec2-inference", "domains": ["llm.example.com", "chat.example.com"], "key_type": "rsa"},
            {
                "name": "own",
                "domains": ["own.example.com"],
                "source": "pem",
                "certificate_pem": "pem",
                "key_pem": "key",
            },
            {"name": "kept", "domains": ["kept.example.com"], "source": "acm", "arn": "arn:aws:acm:x:1:certificate/1"},
        ],
    },
    "wrong certificates": {
        "nginx_certbot_acme_eab_kid": "kid",
        "nginx_certbot_certificates": [
            {
                "name": "one",
                "domains": ["a.example.com", "*.example.com"],
                "source": "pem",
                "key_pem": "x",
                "profile": "y",
            },
            {"name": "one", "domains": ["a.example.com"], "arn": "arn"},
            {"name": "two", "domains": [], "source": "secrets_manager"},
        ],
    },
    "contradictions": {
        "nginx_certbot_client_certificates": "optional",
        "nginx_certbot_real_ip_header": "proxy_protocol",
        "nginx_certbot_hsts_preload": True,
        "nginx_certbot_hsts_max_age_s": 60,
        "nginx_certbot_http3": True,
        "__nginx_certbot_named_files": {"results": [{"item": "/etc/x.conf", "stat": {"exists": False}}]},
    },
    "a CA that nobody asks for": {"nginx_certbot_client_ca_file": "/etc/ca.pem"},
    "twice": {"nginx_certbot_cors_origins": [ORIGINS[0], ORIGINS[0]]},
    "text": {"nginx_certbot_cors_origins": ORIGINS[0]},
}
Rendered = dict[str, tuple[str, list[str]]]
LIMITS: dict[str, str] = {}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Rendered:
    """For each case, nginx.conf and the problems that preflight finds."""
    directory = tmp_path_factory.mktemp("rendered")
    templates = [str(ROLE / f"templates/{name}.j2") for name in ("nginx.conf", "problems.yml", "limits.conf")]
    play = {
        "hosts": "web1",
        "gather_facts": False,
        "vars_files": [str(path) for path in VARS],
        "tasks": [
            # Rendered by lookups, which start no processes, as the module `template` would for each file.
            {
                "ansible.builtin.set_fact": {
                    "rendered": "{{ rendered | default({}) | combine({case: query('ansible.builtin.template', *templates)}) }}"
                },
                "vars": {"here": HERE, "case": case, "templates": templates, **variables},
            }
            for case, variables in CASES.items()
        ]
        + [{"ansible.builtin.copy": {"content": "{{ rendered | to_json }}", "dest": str(directory / "rendered.json")}}],
    }
    for name, content in (("inventory.yml", INVENTORY), ("play.yml", [play]), ("variables.json", BASE)):
        (directory / name).write_text(json.dumps(content))
    command = [Path(sys.executable).parent / "ansible-playbook", "-i", "inventory.yml", "play.yml"]
    command += ["-e", "@variables.json"]
    run = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    cases = json.loads((directory / "rendered.json").read_text())
    LIMITS.update({case: limits for case, (_, _, limits) in cases.items()})
    return {case: (conf, yaml.safe_load(problems or "") or []) for case, (conf, problems, _) in cases.items()}


def entries(conf: str) -> str:
    (found,) = re.findall(r"map \$client_path \$did_you_mean \{\n(.*?)\n    \}", conf, re.DOTALL)
    return str(found)


def test_without_origins_nothing_is_said_of_other_sites(rendered: Rendered) -> None:
    conf, problems = rendered["plain"]
    assert problems == []
    assert "cors" not in conf
    assert "add_header Access-Control" not in conf
    assert "Vary" not in conf
    assert "proxy_hide_header Access-Control-Allow-Origin;" in conf, "nor may anybody else"


@pytest.mark.parametrize("case", ["plain", "versions"])
def test_each_path_has_one_location_and_one_entry(rendered: Rendered, case: str) -> None:
    conf, _ = rendered[case]
    locations = re.findall(r"^ +location (\S+ \S+) \{", conf, re.MULTILINE)
    served = [location for location in locations if location.startswith("= ") and "/__" not in location]
    assert len(served) == len(set(served))
    assert {"= /v1/chat/completions", "= /v2/rerank", "= /classify", "= /v1/label"} <= set(served)
    exact = re.findall(r'^ +(/\S+) "";$', entries(conf), re.MULTILINE)
    assert sorted(f"= {path}" for path in exact) == sorted(served)


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/chat/completions/", "/v1/chat/completions"),
        ("/x/Messages/Count_Tokens", "/v1/messages/count_tokens"),
        ("/v1/tokenize", "/tokenize"),
        ("/label", None),
        ("/x/v1/label/", "/v1/label"),
        ("/v1/chat-completions", None),
        ("/v1/models", None),
    ],
)
def test_the_nearest_path_is_found(rendered: Rendered, path: str, meant: str | None) -> None:
    of_map = entries(rendered["plain"][0])
    known = re.findall(r'^ +(/\S+) "";$', of_map, re.MULTILINE)
    patterns = re.findall(r'^ +"~\*(.+)" " Did you mean (\S+)\?";$', of_map, re.MULTILINE)
    found = None
    if path not in known:
        found = next((right for pattern, right in patterns if re.search(pattern, path, re.IGNORECASE)), None)
    assert found == meant


def blocks(conf: str) -> dict[str, list[str]]:
    """The directives of each block, by its path such as `http / server 3 / location /`. Comments are left out."""
    found: dict[str, list[str]] = {"": []}
    path: list[str] = []
    text = re.sub(r"^\s*#.*$", "", conf, flags=re.MULTILINE)
    for part in re.findall(r"""(?:"[^"]*"|'[^']*'|\{[0-9]|[^;{}"'])*[;{}]""", text):
        directive = part.strip()
        if directive == "}":
            path.pop()
        elif directive.endswith("{"):
            name = " ".join(directive[:-1].split())
            path.append(name if name != "server" else f"server {sum('server' in key for key in found)}")
            found[" / ".join(path)] = []
        else:
            found[" / ".join(path)].append(" ".join(directive[:-1].split()))
    assert path == []
    return found


def headers(conf: str) -> dict[str, list[str]]:
    """The headers that each server, location and `if` sends. nginx inherits add_header only where a level has none of its own."""
    of = blocks(conf)

    def sent(path: str) -> list[str]:
        own = [line for line in of[path] if line.startswith("add_header ")]
        return own if own or not path else sent(path.rpartition(" / ")[0])

    return {path: sent(path) for path in of if " / server" in path}


def test_a_header_is_one_row_and_is_on_every_response(rendered: Rendered) -> None:
    conf, _ = rendered["one more header"]
    everywhere = headers(conf)
    assert len(everywhere) > 50, "servers, locations and conditions"
    rows = [*CASES["one more header"]["__nginx_certbot_headers"], *table("__nginx_certbot_cors_headers")]
    for path, lines in everywhere.items():
        assert lines == [f"add_header {row['name']} {row['value']} always" for row in rows], path
    proxied = next(lines for path, lines in blocks(conf).items() if "proxy_http_version 1.1" in lines)
    assert "proxy_hide_header X-Permitted-Cross-Domain-Policies" in proxied, "a proxy's own would be a second one"
    assert "proxy_hide_header Retry-After" not in proxied, "a proxy's own passes"
    assert HEADER["name"] not in rendered["plain"][0]


def test_an_endpoint_is_one_row(rendered: Rendered) -> None:
    before, after = blocks(rendered["plain"][0]), blocks(rendered["one more endpoint"][0])
    added = {path: after[path] for path in after.keys() - before.keys()}
    for version in BASE["proxy_api_versions"]:
        (path,) = (path for path in added if path.endswith(f" / location = /{version}/images/generations"))
        assert f"proxy_pass http://proxies/{version}/images/generations" in added[path]
    assert len(added) == 6, "a location for each version, and the checks of its method and of a key"
    assert '" Did you mean /v1/images/generations?"' in entries(rendered["one more endpoint"][0])


def test_a_body_is_read_only_where_there_is_a_key(rendered: Rendered) -> None:
    of = blocks(rendered["plain"][0])
    keyed = {path.split(" / ")[2] for path in of if path.endswith(" / if ($keyless)")}
    assert {"location = /v1/chat/completions", "location = /v2/rerank", "location = /tokenize"} <= keyed
    # An operator's own answer takes a POST from anybody; the others have no body, and the proxy asks for the key.
    assert not {"location = /v1/completions", "location = /v1/models", "location = /health/live"} & keyed


def test_nothing_is_answered_before_the_limits_are_counted(rendered: Rendered) -> None:
    """`return` comes before them, so only what was refused already is answered by it, and what gets no answer at all."""
    for path, lines in blocks(rendered["listed"][0]).items():
        if any(line.startswith("return ") for line in lines):
            assert "internal" in lines or lines == ["return 444"], path


def test_every_error_of_nginx_has_a_body_of_ours(rendered: Rendered) -> None:
    """Those that nginx makes itself, before there is a path or later; only an internal path can answer the early ones."""
    made = {400, 403, 404, 405, 408, 413, 414, 421, 429, 431, 494, 495, 496, 497, 500, 501, 502, 503, 504, 505}
    for path, lines in blocks(rendered["plain"][0]).items():
        if path.count(" / ") != 1 or not path.startswith("http / server"):
            continue
        pages = dict(re.findall(r"error_page (\d+) =\d+ /__error/(\w+)", "\n".join(lines)))
        assert made <= {int(status) for status in pages}, path
        for code in pages.values():
            assert "internal" in blocks(rendered["plain"][0])[f"{path} / location = /__error/{code}"]


def test_curves_are_those_of_the_profile_that_openssl_knows(rendered: Rendered) -> None:
    """OpenSSL before 3.5 refuses the whole list for one name that it does not know."""
    assert "ssl_ecdh_curve X25519MLKEM768:X25519:prime256v1:secp384r1" in blocks(rendered["plain"][0])["http"]
    assert "ssl_ecdh_curve X25519:prime256v1:secp384r1" in blocks(rendered["older"][0])["http"]


def test_each_port_probes_silent_connections(rendered: Rendered) -> None:
    """Before EC2 forgets them after 350 s. nginx takes the option once for each address and port."""
    for case in ("plain", "older"):
        listens = [line for lines in blocks(rendered[case][0]).values() for line in lines if line.startswith("listen ")]
        probed = [line.split()[1] for line in listens if "so_keepalive=120s:30s:4" in line]
        assert sorted(probed) == sorted({line.split()[1] for line in listens}), listens


def test_an_unsupported_system_is_told_which_are_supported(rendered: Rendered) -> None:
    _, (problem,) = rendered["unsupported"]
    assert problem == (
        "web1: Debian 13 is not supported by nginx_certbot. Use Amazon 2023, Debian 12, Ubuntu 22.04, or newer."
    )


def test_listed_origins_are_told_back_and_no_credentials(rendered: Rendered) -> None:
    conf, problems = rendered["listed"]
    assert problems == []
    for origin in ORIGINS:
        assert f'"{origin}" $http_origin;' in conf
    assert "add_header Vary Origin always;" in conf
    assert "add_header Access-Control-Allow-Credentials" not in conf
    conf, problems = rendered["anybody"]
    assert problems == []
    assert '"~." "*";' in conf


def test_what_is_no_origin_is_refused_before_anything_changes(rendered: Rendered) -> None:
    _, problems = rendered["wrong"]
    assert len(problems) == len(NO_ORIGINS)
    for origin, problem in zip(NO_ORIGINS, problems, strict=True):
        assert f"nginx_certbot_cors_origins has {json.dumps(origin)}, which" in problem
        assert "such as https://app.example.com:" in problem


@pytest.mark.parametrize(
    ("case", "words"), [("all and one", "allows every site"), ("twice", "twice"), ("text", "not a list")]
)
def test_a_list_that_says_two_things_is_refused(rendered: Rendered, case: str, words: str) -> None:
    _, (problem,) = rendered[case]
    assert words in problem


def test_what_an_operator_switches_on_is_rendered(rendered: Rendered) -> None:
    conf, problems = rendered["everything"]
    assert problems == []
    of = blocks(conf)
    http = of["http"]
    assert "error_log /var/log/nginx/error.log info" in of[""]
    assert {"ssl_protocols TLSv1.3", "ssl_verify_client optional"} <= set(http)
    assert not [line for line in http if line.startswith("ssl_ciphers")], "TLS 1.3 has its own"
    assert 'on "max-age=63072000; includeSubDomains; preload";' in conf
    assert '"client_subject":"$client_subject"' in conf
    assert "503 90" in of["http / map $status $own_retry_after"]
    listens = [line for lines in of.values() for line in lines if line.startswith("listen ")]
    for line in listens:
        assert ("proxy_protocol" in line) == (":443" in line or line.startswith("listen 443")), line
    assert "include /etc/nginx/lists/far.conf" in of["http / geo $denied_network"]
    assert {"default 0", "include /etc/nginx/lists/own.conf"} <= set(of["http / geo $allowed_network"])
    paths = of["http / map $uri $allowed_on_path"]
    assert paths.index('"~^/v1/models(/|$)" $network_of_path_2') < paths.index('"~^/v1(/|$)" $network_of_path_1')
    (chat,) = (path for path in of if path.endswith(" / location = /v1/chat/completions"))
    assert of[chat][0] == "rewrite ^ /__refuse/maintenance last"
    assert f"{chat} / if ($certificate_missing)" in of
    (live,) = (path for path in of if path.endswith(" / location = /health/live"))
    assert "rewrite ^ /__refuse/maintenance last" not in of[live], "load balancers ask it"


def test_by_default_none_of_it_is_there(rendered: Rendered) -> None:
    conf, _ = rendered["plain"]
    for absent in (
        "proxy_protocol",
        "ssl_verify_client",
        "quic",
        "__refuse/maintenance last",
        "preload",
        "refused_client",
    ):
        assert absent not in conf


def test_no_key_comes_into_shared_memory(rendered: Rendered) -> None:
    assert rendered
    limits = LIMITS["everything"]
    zones = re.findall(r"limit_(?:req|conn)_zone (\S+) zone=(\w+):", limits)
    assert {zone: key for key, zone in zones} == {
        "connections_1": "$limit_key",
        "key_requests": "$key_limit_key",
        "key_connections_1": "$key_limit_key",
    }
    assert re.search(
        r'map "\$limited_client\$presented_key" \$key_limit_key \{\s+default "";\s+"~\^1." "(\$key_hash_\d){5}";',
        limits,
    )
    shares = [float(share) for share in re.findall(r"^ +([0-9.]+)% ", limits, re.MULTILINE)]
    assert (len(shares), sum(shares)) == (5 * 49, 5 * 98)
    assert "key" not in LIMITS["plain"].replace("per key", "").replace("limit_key", "")


def test_http3_is_on_each_address_and_is_told_to_browsers(rendered: Rendered) -> None:
    conf, problems = rendered["http3"]
    assert problems == []
    assert conf.count(" quic default_server reuseport;") == 2
    assert """on 'h3=":443"; ma=86400';""" in conf


def test_each_certificate_has_a_server_of_its_own(rendered: Rendered) -> None:
    conf, problems = rendered["several"]
    assert problems == []
    of = blocks(conf)
    servers = {
        line: next(name for name in lines if name.startswith("server_name "))
        for lines in of.values()
        for line in lines
        if line.startswith("include /etc/nginx/ec2-inference/tls/")
    }
    assert servers == {
        "include /etc/nginx/ec2-inference/tls/ec2-inference.conf": "server_name llm.example.com chat.example.com",
        "include /etc/nginx/ec2-inference/tls/own.conf": "server_name own.example.com",
        "include /etc/nginx/ec2-inference/tls/kept.conf": "server_name kept.example.com",
    }
    assert {"llm.example.com 1", "kept.example.com 1"} <= set(of["http / map $host $known_host"])
    assert len([path for path in of if path.endswith(" / location = /v1/chat/completions")]) == 3
    assert conf.count("listen 443 quic default_server reuseport;") == 1, "nginx refuses a second one"
    assert conf.count("listen 443 quic;") == 2


def test_certificates_that_cannot_be_got_are_refused(rendered: Rendered) -> None:
    _, problems = rendered["wrong certificates"]
    for words in (
        'nginx_certbot_domains has "llm.example.com", but no entry',
        'has "a.example.com" more than once',
        'two entries with the name "one"',
        'the domain "*.example.com" is not a full domain name',
        "of source pem needs certificate_pem",
        "profile means nothing for a certificate of source pem",
        "arn means nothing for a certificate of source acme",
        '"two": it has no domains',
        "of source secrets_manager needs arn",
        "only one of nginx_certbot_acme_eab_kid",
    ):
        assert len([problem for problem in problems if words in problem]) == 1, words
    assert len(problems) == 10


def test_settings_that_contradict_each_other_are_refused(rendered: Rendered) -> None:
    _, problems = rendered["contradictions"]
    for words in (
        "/etc/x.conf is not on the host",
        "no CA is named",
        "names no load balancer",
        "below a year",
        "does not exist for UDP",
    ):
        assert len([problem for problem in problems if words in problem]) == 1, words
    assert len(problems) == 5
    (problem,) = rendered["a CA that nobody asks for"][1]
    assert "no certificates are asked for" in problem


# What gixy reports of every configuration, and why it is right as it is.
GIXY_SKIPS = {
    "http2_misdirected_request": "the default server answers 421 in its own error page, as JSON, and rejects other handshakes",
    "proxy_buffering_off": "a stream's events have to reach the client at once",
    "ssl_ecdh_curve": "X25519MLKEM768 is written for OpenSSL 3.5 and newer only",
    "status_page_exposed": "it listens on loopback only",
    "try_files_is_evil_too": "the file that never exists is how an error page is chosen for each reason; challenges are rare",
    "worker_rlimit_nofile_vs_connections": "worker_connections counts those to the proxies, too, and each has one file",
}


@pytest.mark.parametrize("case", ["plain", "everything", "listed", "http3", "several"])
def test_gixy_finds_nothing_that_was_not_weighed(rendered: Rendered, tmp_path: Path, case: str) -> None:
    config = tmp_path / "nginx.conf"
    config.write_text(rendered[case][0])
    gixy = [Path(sys.executable).parent / "gixy", "--disable-includes", "--format=json", config]
    run = subprocess.run(gixy, capture_output=True, text=True, timeout=120, check=False)
    found = {issue["plugin"]: issue for issue in json.loads(run.stdout)}
    assert set(found) == set(GIXY_SKIPS), json.dumps(found, indent=1) + run.stderr
