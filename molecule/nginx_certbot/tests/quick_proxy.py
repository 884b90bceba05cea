"""A stand-in for a proxy worker that costs little: one JSON answer, or a stream of events 10 ms apart. `quick_proxy.py ADDRESS PORT`, on a lab host."""

from __future__ import annotations

import asyncio
import re
import sys

BODY = b'{"id":"c-1","object":"chat.completion","choices":[{"index":0,"message":{"content":"%s"}}]}' % (b"word " * 40)
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(BODY), BODY)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b'data: {"id":"c-1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":" word"}}]}\n\n'
CHUNK = b"%x\r\n%s\r\n" % (len(EVENT), EVENT)


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
            body = await reader.readexactly(int(length[1])) if length else b""
            if wanted := re.search(rb'"events": *(\d+)', body):
                writer.write(HEAD)
                for _ in range(int(wanted[1])):
                    await asyncio.sleep(0.01)
                    writer.write(CHUNK)
                writer.write(b"0\r\n\r\n")
            else:
                writer.write(ANSWER)
    except (ConnectionError, asyncio.IncompleteReadError):
        writer.close()


async def main(address: str, port: int) -> None:
    async with await asyncio.start_server(serve, address, port, backlog=512) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
