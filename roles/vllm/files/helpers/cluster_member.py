#!/usr/bin/env python3
"""Run one rank of an engine that spreads over several hosts: all ranks start together, and the loss of one ends all.

    cluster_member.py NAME.cluster.json vllm serve --config NAME.yml …

The file has ``rank`` (0 is the head), ``addresses`` (of all ranks' hosts, by rank), ``port`` (where the head's program listens), ``generation``
(which has to be the same on all hosts) and ``grace_s`` (how long requests in flight may go on after a SIGTERM). The ranks prove to each other
that they know the secret ``cluster_token`` in systemd's ``$CREDENTIALS_DIRECTORY``, without sending it.

The head waits for the others, then all start their engines. Each side says every few seconds that it is alive. When an engine ends, or a rank
is lost or silent, every rank kills its own engine and exits with status 1; systemd starts them again, and they wait for each other. A worker
that is told to stop (SIGTERM) has the head finish its requests first.
Standard library only (Python 3.9 or newer).
"""

from __future__ import annotations

import abc
import contextlib
import hmac
import json
import os
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

BEAT_EVERY_S = 3.0
LOST_AFTER_S = 15.0
TURN_S = 0.5
CONNECT_S = 3.0
# A line of the ranks' conversation, and connections that have not proven themselves.
LINE_MAX = 4096
STRANGERS_MAX = 16
TOKEN = "cluster_token"


class EndError(Exception):
    """Why this rank ends."""


@dataclass(frozen=True)
class Place:
    """This rank's place in the cluster."""

    rank: int
    addresses: List[str]
    port: int
    generation: str
    grace_s: float

    @classmethod
    def read(cls, path: Path) -> "Place":
        return cls(**json.loads(path.read_text()))

    def name(self, rank: int) -> str:
        return f"rank {rank} ({self.addresses[rank]})"


def tell(text: str, **fields: str) -> None:
    """Write it to the journal, and send it to systemd with further fields."""
    print(text, flush=True)
    notify(STATUS=text, **fields)


def notify(**fields: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        text = "\n".join(f"{key}={value}" for key, value in fields.items())
        manager.sendto(text.encode(), address.replace("@", "\0", 1))


@dataclass(eq=False)
class Peer:
    """A connection to another rank."""

    connection: socket.socket
    rank: Optional[int] = None
    nonce: str = field(default_factory=lambda: secrets.token_hex(16))
    heard_s: float = field(default_factory=time.monotonic)
    rest: bytes = b""

    def say(self, **message: Any) -> None:
        """Raises OSError when the other side is lost, or does not read."""
        self.connection.sendall(json.dumps(message).encode() + b"\n")

    def heard(self) -> Iterator[Dict[str, Any]]:
        """The messages that have arrived. Raises OSError when the connection has ended, ValueError when it is not a rank's."""
        received = self.connection.recv(LINE_MAX)
        if not received:
            raise ConnectionResetError("the connection has ended")
        *lines, self.rest = (self.rest + received).split(b"\n")
        if len(self.rest) > LINE_MAX:
            raise ValueError("a line is too long")
        for line in lines:
            message = json.loads(line)
            if not isinstance(message, dict):
                raise ValueError("a message is no object")
            self.heard_s = time.monotonic()
            yield message

    def silent_s(self) -> float:
        return time.monotonic() - self.heard_s


class Member(abc.ABC):
    def __init__(self, place: Place, token: bytes, command: List[str]) -> None:
        self.place, self.token, self.command = place, token, command
        self.engine: Optional["subprocess.Popen[bytes]"] = None
        self.peers: List[Peer] = []
        self.selector = selectors.DefaultSelector()
        self.beat_s = float("-inf")
        self.told = ""
        # When this program was told to stop, and when the engine was.
        self.stop_s: Optional[float] = None
        self.engine_stop_s: Optional[float] = None

    # What head and workers have in common.

    def proof(self, nonce: str, rank: int) -> str:
        """Whoever can make it knows the token. It holds for one connection, one rank and one generation."""
        text = f"{nonce} {rank} {self.place.generation}"
        return hmac.new(self.token, text.encode(), "sha256").hexdigest()

    def is_proof(self, said: Any, nonce: str, rank: int) -> bool:
        return hmac.compare_digest(str(said).encode(), self.proof(nonce, rank).encode())

    def run(self) -> int:
        signal.signal(signal.SIGTERM, self.on_stop)
        try:
            while True:
                self.turn()
        except EndError as error:
            stopped = self.stop_s is not None
            tell(f"{'stopped' if stopped else 'ends, and is started again'}: {error}", STOPPING="1")
            self.kill()
            for peer in self.peers:
                with contextlib.suppress(OSError):
                    peer.say(say="end", why=str(error))
            return 0 if stopped else 1

    def on_stop(self, *_: Any) -> None:
        if self.stop_s is None:
            self.stop_s = time.monotonic()

    def turn(self) -> None:
        """Look once at everything."""
        for key, _ in self.selector.select(TURN_S):
            key.data()
        self.look_at_engine()
        if self.stop_s is not None:
            self.stop()
        if time.monotonic() - self.beat_s >= BEAT_EVERY_S:
            self.beat_s = time.monotonic()
            # While it waits, systemd's limit of a start moves on with each message; one that is frozen meets it.
            notify(WATCHDOG="1", **({} if self.engine else {"EXTEND_TIMEOUT_USEC": "60000000"}))
            for peer in list(self.peers):
                self.guarded(peer, lambda peer=peer: peer.say(say="beat"))
        for peer in list(self.peers):
            if peer.silent_s() > LOST_AFTER_S:
                self.lose(peer, f"has been silent for {peer.silent_s():.0f} s")

    def guarded(self, peer: Peer, action: Any) -> None:
        """Do something with a connection, which may end."""
        try:
            action()
        except (OSError, ValueError) as error:
            self.lose(peer, str(error))

    def hear(self, peer: Peer) -> None:
        def each() -> None:
            for message in peer.heard():
                if peer not in self.peers:
                    return
                self.on_message(peer, message)

        self.guarded(peer, each)

    @abc.abstractmethod
    def on_message(self, peer: Peer, message: Dict[str, Any]) -> None:
        """Take one message of a rank."""

    def add(self, peer: Peer) -> None:
        peer.connection.settimeout(CONNECT_S)
        self.peers.append(peer)
        self.selector.register(peer.connection, selectors.EVENT_READ, lambda: self.hear(peer))

    def drop(self, peer: Peer) -> None:
        self.peers.remove(peer)
        self.selector.unregister(peer.connection)
        peer.connection.close()

    def lose(self, peer: Peer, why: str) -> None:
        """A connection has ended. Once the engine runs, so has that of a rank."""
        if peer not in self.peers:
            return
        self.drop(peer)
        if self.engine is not None and peer.rank is not None:
            raise EndError(f"{self.place.name(peer.rank)} is lost: {why}")

    def wait_for(self, what: str) -> None:
        if what != self.told:
            self.told = what
            tell(what)

    def start(self) -> None:
        # systemd hears of the engine from this program, and the engine needs no secret.
        hidden = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "CREDENTIALS_DIRECTORY")
        environment = {key: value for key, value in os.environ.items() if key not in hidden}
        self.engine = subprocess.Popen(self.command, env=environment, start_new_session=True)
        tell(f"all {len(self.place.addresses)} ranks are here; rank {self.place.rank} starts", READY="1")

    def look_at_engine(self) -> None:
        status = self.engine.poll() if self.engine else None
        if status is not None:
            raise EndError(f"the engine of {self.place.name(self.place.rank)} ended with status {status}")

    def stop_engine(self) -> None:
        """Have it finish its requests, for as long as they may go on; then it is killed."""
        if self.engine is None:
            raise EndError("it was told to stop before the engine started")
        if self.engine_stop_s is None:
            self.engine_stop_s = time.monotonic()
            self.engine.terminate()
        elif time.monotonic() - self.engine_stop_s > self.place.grace_s + LOST_AFTER_S:
            raise EndError("the engine did not end in time")

    @abc.abstractmethod
    def stop(self) -> None:
        """Go on with an orderly stop; called in each turn since this program was told to."""

    def kill(self) -> None:
        """Kill the engine with all its processes."""
        if self.engine is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.engine.pid, signal.SIGKILL)
            self.engine.wait()


class Head(Member):
    def __init__(self, place: Place, token: bytes, command: List[str]) -> None:
        super().__init__(place, token, command)
        family = socket.AF_INET6 if ":" in place.addresses[0] else socket.AF_INET
        self.listener = socket.create_server((place.addresses[0], place.port), family=family)
        self.selector.register(self.listener, selectors.EVENT_READ, self.accept)
        self.leaver: Optional[int] = None

    def accept(self) -> None:
        try:
            connection, address = self.listener.accept()
        except OSError:
            return  # it has gone again
        strangers = [peer for peer in self.peers if peer.rank is None]
        if address[0] not in self.place.addresses[1:] or len(strangers) >= STRANGERS_MAX:
            connection.close()
            return
        peer = Peer(connection)
        self.add(peer)
        self.guarded(peer, lambda: peer.say(say="who", nonce=peer.nonce))

    def turn(self) -> None:
        super().turn()
        if self.engine is None:
            here = {peer.rank for peer in self.peers}
            missing = [rank for rank in range(1, len(self.place.addresses)) if rank not in here]
            if missing:
                self.wait_for("waits for " + ", ".join(self.place.name(rank) for rank in missing))
                return
            self.start()
            for peer in [peer for peer in self.peers if peer.rank is not None]:
                self.guarded(peer, lambda peer=peer: peer.say(say="start"))
        elif self.leaver is not None:
            self.stop_engine()

    def on_message(self, peer: Peer, message: Dict[str, Any]) -> None:
        said = message.get("say")
        if peer.rank is None:
            self.welcome(peer, message)
        elif said == "leave" and self.engine is not None:
            self.leaver = peer.rank
        elif said == "end":
            self.lose(peer, str(message.get("why"))[:500])

    def welcome(self, peer: Peer, message: Dict[str, Any]) -> None:
        """Let a rank in that knows the token, comes from its own host and has the same generation."""
        rank, address = message.get("rank"), peer.connection.getpeername()[0]
        if (
            not isinstance(rank, int)
            or not 0 < rank < len(self.place.addresses)
            or address != self.place.addresses[rank]
        ):
            why = f"{address} is not the address of rank {rank}"
        elif not self.is_proof(message.get("proof"), peer.nonce, rank):
            why = "its release or its token is another one"
        else:
            before = next((other for other in self.peers if other.rank == rank), None)
            if before is not None:
                self.lose(before, "it has been started anew")
            peer.rank = rank
            peer.say(say="welcome", proof=self.proof(str(message.get("nonce")), 0))
            return
        peer.say(say="refused", why=why)
        self.drop(peer)

    def stop(self) -> None:
        self.stop_engine()


class Worker(Member):
    def __init__(self, place: Place, token: bytes, command: List[str]) -> None:
        super().__init__(place, token, command)
        self.welcomed = self.left = False

    def turn(self) -> None:
        if not self.peers and self.stop_s is None:
            self.connect()
        super().turn()

    def connect(self) -> None:
        head = (self.place.addresses[0], self.place.port)
        own = (self.place.addresses[self.place.rank], 0)
        self.welcomed = False
        try:
            self.add(Peer(socket.create_connection(head, timeout=CONNECT_S, source_address=own), rank=0))
        except OSError as error:
            self.wait_for(f"waits for {self.place.name(0)}: {error}")

    def on_message(self, peer: Peer, message: Dict[str, Any]) -> None:
        said = message.get("say")
        if said == "who":
            nonce = str(message.get("nonce"))[:LINE_MAX]
            peer.say(say="here", rank=self.place.rank, proof=self.proof(nonce, self.place.rank), nonce=peer.nonce)
        elif said == "welcome":
            if not self.is_proof(message.get("proof"), peer.nonce, 0):
                raise ValueError("it does not know the token")
            self.welcomed = True
            self.wait_for(f"is known to {self.place.name(0)}; waits for the other ranks")
        elif said == "refused":
            self.wait_for(f"is refused by {self.place.name(0)}: {message.get('why')}")
            self.drop(peer)
        elif said == "start" and self.welcomed and self.engine is None:
            self.start()
        elif said == "end":
            self.lose(peer, str(message.get("why"))[:500])

    def stop(self) -> None:
        """The head's engine needs this one for the requests in flight: it stops first."""
        if self.engine is None or not self.peers:
            raise EndError("it was told to stop")
        if not self.left:
            self.left = True
            self.guarded(self.peers[0], lambda: self.peers[0].say(say="leave"))
        assert self.stop_s is not None
        if time.monotonic() - self.stop_s > self.place.grace_s + LOST_AFTER_S:
            raise EndError("the head did not end in time")


def main(arguments: List[str]) -> int:
    place = Place.read(Path(arguments[0]))
    token = (Path(os.environ["CREDENTIALS_DIRECTORY"]) / TOKEN).read_bytes().strip()
    if not token:
        print("the token is empty: set vllm_cluster_token", flush=True)
        return 1
    return (Worker if place.rank else Head)(place, token, arguments[1:]).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
