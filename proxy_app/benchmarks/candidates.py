"""The candidates: how each is installed, and how it is started in front of two engines.

Each runs one worker, checks a key if it can, logs only warnings (ours: its access log), and sends a request
to the less busy engine, or to both in turn.
"""

import contextlib
import functools
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from .measure import KEY

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
_START_S = 120
_STOP_S = 10


class Missing(Exception):
    """Something that a run needs is not on this machine. The message says what to do."""


class Ended(Exception):
    """A process that should be serving has ended. The message says how."""


@dataclass(frozen=True)
class Ground:
    """Where a candidate runs."""

    directory: Path  # of its own, empty
    venv: Path  # installed from its lock
    port: int
    other_port: int  # free, for anything else that it listens on
    engines: Sequence[str]  # their origins


@dataclass(frozen=True)
class Candidate:
    name: str
    prepare: Callable[[Ground], list[str]]
    """Writes the candidate's files into the ground's directory and returns its command."""
    locks: Sequence[Path] = ()
    package: str | None = None
    program: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    aside: bool = False
    """Answers a special question, so it runs only if it is named."""

    def check(self) -> None:
        """Raises Missing."""
        if self.program is not None:
            find(self.program)

    def version(self, venv: Path) -> str:
        if self.program is not None:
            shown = subprocess.run([find(self.program), "-v"], capture_output=True, text=True, check=True)
            return shown.stderr.strip().rpartition("/")[2]
        code = f"from importlib.metadata import version; print(version({self.package!r}))"
        return subprocess.run(
            [venv / "bin/python", "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()


def find(program: str) -> str:
    """The path of a program. Raises Missing."""
    # Debian installs servers in directories that only root's PATH contains.
    path = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if path is None:
        packages = {"nginx": "nginx-light", "gcc": "gcc libc6-dev"}
        raise Missing(
            f"{program} is not installed (Debian, Ubuntu: apt-get install {packages.get(program, program)})"
        )
    return path


def _nginx(ground: Ground) -> list[str]:
    servers = "\n".join(f"    server {engine.split('//')[1]} max_fails=0;" for engine in ground.engines)
    (ground.directory / "nginx.conf").write_text(f"""
worker_processes 1;
daemon off;
pid nginx.pid;
error_log error.log;
worker_rlimit_nofile 16384;
events {{ worker_connections 8192; }}
http {{
  access_log access.log;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
  client_max_body_size 16m;
  client_body_buffer_size 256k;
  keepalive_requests 1000000;
  upstream engines {{
    least_conn;
{servers}
    keepalive 1024;
    keepalive_requests 1000000;
  }}
  map $http_authorization $known {{ default 0; "Bearer {KEY}" 1; }}
  server {{
    listen 127.0.0.1:{ground.port} backlog=4096;
    location /v1/ {{
      if ($known = 0) {{ return 401; }}
      proxy_pass http://engines;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout 600s;
      proxy_next_upstream error timeout non_idempotent;
    }}
  }}
}}
""")
    return [find("nginx"), "-p", str(ground.directory), "-e", "error.log", "-c", "nginx.conf"]


def _vllm_router(ground: Ground) -> list[str]:
    return [
        str(ground.venv / "bin/vllm-router"),
        *("--host", "127.0.0.1", "--port", str(ground.port)),
        *("--worker-urls", *ground.engines, "--policy", "power_of_two", "--log-level", "warning"),
        *("--prometheus-port", str(ground.other_port), "--max-concurrent-requests", "8192"),
    ]


def _smg(ground: Ground) -> list[str]:
    return [
        *(str(ground.venv / "bin/smg"), "launch", "--host", "127.0.0.1", "--port", str(ground.port)),
        *("--worker-urls", *ground.engines, "--policy", "power_of_two", "--log-level", "warn"),
        *("--prometheus-port", str(ground.other_port), "--max-concurrent-requests", "8192"),
    ]


def _litellm(ground: Ground) -> list[str]:
    deployments = [
        {
            "model_name": "mock",
            "litellm_params": {"model": "openai/mock", "api_base": f"{engine}/v1", "api_key": "none"},
        }
        for engine in ground.engines
    ]
    configuration = {
        "model_list": deployments,
        "router_settings": {"routing_strategy": "least-busy"},
        "general_settings": {"master_key": KEY},
    }
    path = ground.directory / "config.yaml"
    path.write_text(yaml.safe_dump(configuration))
    return [
        *(str(ground.venv / "bin/litellm"), "--config", str(path), "--host", "127.0.0.1"),
        *("--port", str(ground.port), "--num_workers", "1", "--telemetry", "False"),
    ]


def _serve(tree: Path, ground: Ground) -> list[str]:
    configuration = yaml.safe_load((tree / "proxy_app/benchmarks/ours.yml").read_text())
    keys = [{"name": "bench", "sha256": hashlib.sha256(KEY.encode()).hexdigest(), "models": []}]
    (ground.directory / "keys.yml").write_text(yaml.safe_dump(keys))
    (ground.directory / "drained").mkdir()
    configuration |= {
        "engines": [
            {"id": f"engine{number}", "url": engine, "models": ["mock"]}
            for number, engine in enumerate(ground.engines, 1)
        ],
        "keys_file": str(ground.directory / "keys.yml"),
        "drained_dir": str(ground.directory / "drained"),
        "usage": {"directory": str(ground.directory)},
        "admin": {"port_offset": ground.other_port - ground.port},
        # The engines accept everything, traces too.
        "traces": configuration["traces"] | {"endpoint": f"{ground.engines[0]}/v1/traces"},
    }
    (ground.directory / "config.yml").write_text(yaml.safe_dump(configuration))
    return [
        *(str(ground.venv / "bin/python"), "-m", "inference_proxy", "serve"),
        *("--config", str(ground.directory / "config.yml")),
        *("--host", "127.0.0.1", "--port", str(ground.port)),
    ]


def _lock(name: str) -> Path:
    return HERE / "requirements" / f"{name}.txt"


# As on a host: the locked packages, and the sources of this checkout.
_OURS_LOCK = ROOT / "proxy_app/requirements.txt"
_OURS_PATH = ROOT / "proxy_app/src"


def proxy_of(name: str, tree: Path) -> Candidate:
    """Our proxy from a tree of this repository, with every feature switched on."""
    app = tree / "proxy_app"
    return Candidate(
        name,
        functools.partial(_serve, tree),
        (app / "requirements.txt", app / "requirements-otel.txt"),
        "uvicorn",
        environment={"PYTHONPATH": str(app / "src")},
    )


def _bare(client: str) -> Candidate:
    def prepare(ground: Ground) -> list[str]:
        program = [str(ground.venv / "bin/python"), "-m", "benchmarks.bare"]
        return [*program, "--client", client, "--port", str(ground.port), *ground.engines]

    environment = {"PYTHONPATH": f"{_OURS_PATH}{os.pathsep}{HERE.parent}"}
    locks = (_OURS_LOCK, _lock("aiohttp"))
    return Candidate(f"bare-{client}", prepare, locks, "aiohttp", environment=environment, aside=True)


CANDIDATES = {
    candidate.name: candidate
    for candidate in (
        Candidate("nginx", _nginx, program="nginx"),
        Candidate("vllm-router", _vllm_router, (_lock("vllm-router"),), "vllm-router"),
        Candidate("smg", _smg, (_lock("smg"),), "smg"),
        # Without this, it downloads its price list from the internet at each start.
        Candidate(
            "litellm",
            _litellm,
            (_lock("litellm"),),
            "litellm",
            environment={"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"},
        ),
        proxy_of("ours", ROOT),
        _bare("ours"),
        _bare("aiohttp"),
    )
}


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as open_sockets:
        sockets = [open_sockets.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [sock.getsockname()[1] for sock in sockets]


@contextlib.contextmanager
def running(
    command: Sequence[str], directory: Path, core: int, environment: Mapping[str, str] | None = None
) -> Iterator[int]:
    """Run a process on one core with its output in `directory`/log, and end it with all its children.

    Yields its pid.
    """
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
    try:
        yield process.pid
    finally:
        process.terminate()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGCONT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def awake(root: int, port: int, log: Path) -> Iterator[None]:
    """Resume a process that `running` started, and stop it again at the end. Raises Ended.

    A stopped process with work left, such as a backlog or health checks, takes no CPU from the next
    candidate.
    """
    os.killpg(root, signal.SIGCONT)
    wait_until_serving(port, log, root)
    try:
        yield
    finally:
        os.killpg(root, signal.SIGSTOP)


def wait_until_serving(port: int, log: Path, root: int) -> None:
    """Wait until a completion succeeds.

    Raises Ended if the child `root` has ended; RuntimeError if there was no answer for two minutes. Both
    contain the end of the log.
    """
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        b'{"model":"mock","messages":[{"role":"user","content":"x"}],"max_tokens":1}',
        {"authorization": f"Bearer {KEY}", "content-type": "application/json"},
    )
    give_up = time.monotonic() + _START_S
    while True:
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                response.read()
                return
        except (urllib.error.URLError, OSError) as error:
            if ended := os.waitid(os.P_PID, root, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                how = "status" if ended.si_code == os.CLD_EXITED else "signal"
                raise Ended(f"it ended with {how} {ended.si_status}{_end_of(log)}") from error
            if time.monotonic() > give_up:
                raise RuntimeError(
                    f"no answer on port {port} within {_START_S} s: {error}{_end_of(log)}"
                ) from error
            time.sleep(0.2)


def _end_of(log: Path) -> str:
    text = log.read_text(errors="replace")[-2000:] if log.exists() else ""
    return f"; the end of its log:\n{text}"
