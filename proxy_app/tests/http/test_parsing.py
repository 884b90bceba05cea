"""Properties of the HTTP client's writing and parsing, with hypothesis."""

import asyncio
from typing import Any, cast

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_proxy.http.answer import Answer, EngineLost
from inference_proxy.http.request_head import request_head


class Transport:
    """Records what an answer asks of its connection."""

    def __init__(self) -> None:
        self.aborted = False
        self.paused = False

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True

    def pause_reading(self) -> None:
        assert not self.paused
        self.paused = True

    def resume_reading(self) -> None:
        assert self.paused
        self.paused = False


class Reading:
    """An answer that is fed by hand, and what its reader gets.

    The first piece is taken at once if its length is as `begins` says: even or odd.
    """

    def __init__(self, begins: int | None = None) -> None:
        self.transport = Transport()
        self.released: list[bool] = []
        self.begins = begins
        self.begun = False
        transport = cast(asyncio.Transport, self.transport)
        self.answer = Answer(transport, "POST", self.released.append, self.begin)
        self.pieces: list[bytes] = []
        self.lost = False

    def begin(self, answer: Answer, piece: bytes) -> bool:
        assert answer is self.answer
        assert answer.status == 200
        assert piece
        assert not self.begun
        assert not self.pieces
        self.begun = len(piece) % 2 == self.begins
        if self.begun:
            self.pieces.append(piece)
        return self.begun

    async def read(self, take: Any) -> None:
        try:
            await self.answer.head()
            knew = self.begun
            while (piece := await self.answer.read(take)) or self.begun != knew:
                knew = self.begun
                self.pieces.append(piece)
        except EngineLost:
            self.lost = True


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    ends = [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False) if start < end]


def on_the_wire(pieces: list[bytes], framing: str) -> bytes:
    body = b"".join(pieces)
    if framing == "chunked":
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece)
        return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n" + chunks + b"0\r\nt: 1\r\n\r\n"
    if framing == "length":
        return b"HTTP/1.1 100 C\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    return b"HTTP/1.1 200 OK\r\n\r\n" + body


LOOKS_LIKE_CHUNKS = st.sampled_from([b"3\r\nabc\r\n", b"\r\n", b"a\r\n", b"0\r\n\r\n", b"8\r\n3\r\nabc\r\n"])
CUTS = st.lists(st.integers(min_value=0, max_value=1 << 20), max_size=20)


@given(
    pieces=st.lists(st.binary(max_size=200), max_size=8),
    framing=st.sampled_from(["chunked", "length", "close"]),
    cuts=CUTS,
    pauses=st.integers(min_value=0, max_value=3),
    taking=st.booleans(),
    begins=st.sampled_from([None, 0, 1]),
    missing=st.integers(min_value=0, max_value=30),
)
def test_where_reads_cut_an_answer_changes_nothing(
    pieces: list[bytes],
    framing: str,
    cuts: list[int],
    pauses: int,
    taking: bool,
    begins: int | None,
    missing: int,
) -> None:
    """Nor does it matter how often the reader runs, nor whether it takes some pieces at once.

    An answer that lacks its last bytes never counts as complete, unless its framing cannot show that.
    """
    wire = on_the_wire(pieces, framing)
    wire = wire[: max(0, len(wire) - missing)]

    async def run() -> None:
        reading = Reading(begins)

        def take(piece: bytes, framed: bytes) -> bool:
            assert framed == b"%x\r\n%b\r\n" % (len(piece), piece)
            if len(piece) % 2:
                return False
            reading.pieces.append(piece)
            return True

        task = asyncio.create_task(reading.read(take if taking else None))
        for part in split(wire, cuts):
            reading.answer.feed(part)
            for _ in range(pauses):
                await asyncio.sleep(0)
        reading.answer.lost(None)
        await task
        body = b"".join(pieces)
        got = b"".join(reading.pieces)
        reading.answer.close()
        if missing and framing != "close":
            assert reading.lost
            assert body.startswith(got)
            assert reading.released == [False]
        elif reading.lost:
            assert missing, "only a head that is incomplete can be missed here"
        else:
            assert got == body[: len(body) - missing]
            assert reading.released == [framing != "close"]

    asyncio.run(run())


@given(pieces=st.lists(st.one_of(LOOKS_LIKE_CHUNKS, st.binary(max_size=40)), max_size=8), data=st.data())
def test_what_goes_past_the_parser_is_what_it_would_say(pieces: list[bytes], data: st.DataObject) -> None:
    """Each chunk is one read, some are split in two or joined with the next one.

    Parts of their content could be taken for a chunk.
    """
    wire = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece]
    reads = [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"]
    for chunk in wire:
        way = data.draw(st.sampled_from(["whole", "cut", "glued"]))
        if way == "whole":
            reads.append(chunk)
        elif way == "glued":
            reads[-1] += chunk
        else:
            cut = data.draw(st.integers(min_value=1, max_value=len(chunk) - 1))
            reads += [chunk[:cut], chunk[cut:]]
    reads.append(b"0\r\n\r\n")

    async def run() -> None:
        reading = Reading()

        def take(piece: bytes, framed: bytes) -> bool:
            assert framed == b"%x\r\n%b\r\n" % (len(piece), piece)
            reading.pieces.append(piece)
            return True

        task = asyncio.create_task(reading.read(take))
        for part in reads:
            reading.answer.feed(part)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        await task
        assert b"".join(reading.pieces) == b"".join(pieces)
        assert not reading.lost
        reading.answer.close()
        assert reading.released == [True]

    asyncio.run(run())


@given(garbage=st.binary(max_size=300), prefix=st.sampled_from([b"", b"HTTP/1.1 ", b"HTTP/1.1 200 OK\r\n"]))
def test_no_bytes_can_do_more_than_end_an_answer(garbage: bytes, prefix: bytes) -> None:
    async def run() -> None:
        reading = Reading()
        task = asyncio.create_task(reading.read(None))
        reading.answer.feed(prefix + garbage)
        await asyncio.sleep(0)
        reading.answer.lost(None)
        await task
        reading.answer.close()
        assert reading.released in ([True], [False])

    asyncio.run(run())


@given(sizes=st.lists(st.integers(min_value=1, max_value=60_000), max_size=30), cuts=CUTS)
def test_what_is_not_read_is_bounded(sizes: list[int], cuts: list[int]) -> None:
    """The bound relies on this: a paused transport delivers no more data."""

    async def run() -> None:
        reading = Reading()
        waiting = split(on_the_wire([bytes(size) for size in sizes], "chunked"), cuts)
        read = 0
        while waiting:
            while waiting and not reading.transport.paused:
                part = waiting.pop(0)
                reading.answer.feed(part)
                assert reading.answer._unread <= (64 << 10) + len(part)
            if reading.transport.paused:
                read += len(await reading.answer.read())
                assert not reading.transport.paused
        while piece := await reading.answer.read():
            read += len(piece)
        assert read == sum(sizes)

    asyncio.run(run())


class _Request:
    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.url = b""
        self.requests = 0

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.requests += 1


ODD = st.text(alphabet=st.sampled_from("aZ9-:/ \t\r\n\0\x7f\u00e9\u0100?#%;,\"'()"), max_size=12)


@given(target=ODD.map(lambda text: "/" + text) | ODD, headers=st.dictionaries(ODD, ODD, max_size=4))
def test_what_is_sent_is_what_was_meant_or_nothing(target: str, headers: dict[str, str]) -> None:
    try:
        head = request_head("POST", "engine:8000", target, headers, 3)
    except ValueError:
        return
    parsed = _Request()
    parser = httptools.HttpRequestParser(parsed)
    parser.feed_data(head + b"abc")
    assert parsed.requests == 1
    assert parsed.url == target.encode()
    sent = [(name.decode(), value.decode("latin-1")) for name, value in parsed.headers]
    meant = [(name, value.strip("\t ")) for name, value in headers.items()]
    assert [(name, value.strip("\t ")) for name, value in sent[3:-1]] == meant
    assert sent[-1] == ("content-length", "3")


@pytest.mark.parametrize(
    ("method", "target", "headers"),
    [
        ("POST", "/x", {"a": "b\r\nx-vllm-priority: -1"}),
        ("POST", "/x", {"a": "b\n\nGET / HTTP/1.1"}),
        ("POST", "/x", {"a\r\nb": "c"}),
        ("POST", "/x", {"a:": "c"}),
        ("POST", "/x", {"": "c"}),
        ("POST", "/x", {"a": "\u4e2d"}),
        ("POST", "/x", {"Content-Length": "0"}),
        ("POST", "/x", {"transfer-encoding": "chunked"}),
        ("POST", "/x", {"Host": "elsewhere"}),
        ("POST", "/x", {"connection": "upgrade"}),
        ("POST", "/x HTTP/1.1\r\nhost: elsewhere\r\n\r\n", {}),
        ("POST", "/x y", {}),
        ("POST", "http://elsewhere/", {}),
        ("POST", "", {}),
        ("POST", "/\u00e9", {}),
        ("GET /admin HTTP/1.1\r\n\r\nPOST", "/x", {}),
        ("", "/x", {}),
    ],
)
def test_request_smuggling(method: str, target: str, headers: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"^(method|path|header) "):
        request_head(method, "engine:8000", target, headers, 3)


@pytest.mark.parametrize(
    ("method", "length", "declared"),
    [("POST", 3, b"3"), ("POST", 0, b"0"), ("GET", 0, None), ("HEAD", 0, None), ("GET", 2, b"2")],
)
def test_the_length_is_declared_where_a_body_is_expected(
    method: str, length: int, declared: bytes | None
) -> None:
    head = request_head(method, "e", "/", {}, length)
    assert head.endswith(b"\r\n\r\n")
    assert (b"content-length: " in head) == (declared is not None)
    if declared is not None:
        assert b"\r\ncontent-length: %b\r\n" % declared in head
