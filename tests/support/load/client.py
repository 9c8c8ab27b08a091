"""Post events over many connections, and report which were acknowledged, which were retried, and how long each took.

An event whose response was lost is retried with the same message id until it is acknowledged or the time is over.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import time
from array import array
from urllib.parse import urlsplit

from serving import TOKEN

from jobs_backup.testing.events import events


class Client:
    def __init__(self, url: str, *, seconds: float, per_request: int) -> None:
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "", parts.port or 0
        self.seconds_left = seconds
        self.until = math.inf  # the time starts with the first response
        self.per_request = per_request
        self.next = 0
        self.acknowledged: list[int] = []  # numbers of requests
        self.retried: set[int] = set()
        self.statuses: dict[int, int] = {}
        self.seconds = array("d")
        # Realistic payloads; each starts with its own message id.
        self.payloads = [payload[1:] for payload in events(200, seed=1)]

    def body(self, number: int) -> bytes:
        first = number * self.per_request
        made = (
            b'{"messageId":"%d",%b' % (one, self.payloads[one % len(self.payloads)].replace(b'"messageId"', b'"originalId"'))
            for one in range(first, first + self.per_request)
        )
        return b"\n".join(made)

    async def connection(self) -> None:
        """Post one request after another until the time is over."""
        while time.monotonic() < self.until:
            number, self.next = self.next, self.next + 1
            request = self.request(number)
            while not await self.acknowledge(number, request) and time.monotonic() < self.until:
                self.retried.add(number)
                self.streams.pop(asyncio.current_task(), None)
                await asyncio.sleep(0.02)

    def request(self, number: int) -> bytes:
        body = self.body(number)
        head = (
            f"POST /v1/events?source_id=web HTTP/1.1\r\nHost: {self.host}\r\nAuthorization: Bearer {TOKEN}\r\n"
            f"Content-Type: application/x-ndjson\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    async def acknowledge(self, number: int, request: bytes) -> bool:
        try:
            reader, writer = self.streams.get(asyncio.current_task()) or await asyncio.open_connection(self.host, self.port)
            self.streams[asyncio.current_task()] = reader, writer
            begun = time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            status = int(head[9:12])
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError):
            return False
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if status != 200:
            return False
        if not self.acknowledged:
            self.until = time.monotonic() + self.seconds_left
            sys.stdout.write("begun\n")
            sys.stdout.flush()
        self.seconds.append(time.perf_counter() - begun)
        self.acknowledged.append(number)
        return True

    async def run(self, connections: int) -> None:
        self.streams: dict[asyncio.Task[None] | None, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}
        await asyncio.gather(*(self.connection() for _ in range(connections)))
        for _, writer in self.streams.values():
            writer.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--events", type=int, required=True)
    options = parser.parse_args()
    client = Client(options.url, seconds=options.seconds, per_request=options.events)
    asyncio.run(client.run(options.connections))
    latencies = sorted(client.seconds)
    summary = {
        "acknowledged": client.acknowledged,
        "retried": sorted(client.retried),
        "statuses": client.statuses,
        "percentiles": {p: latencies[min(len(latencies) - 1, int(len(latencies) * p / 100))] for p in (50, 90, 99, 99.9, 100)},
    }
    json.dump(summary, sys.stdout)


if __name__ == "__main__":
    main()
