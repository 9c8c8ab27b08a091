"""The benchmark events: NDJSON files, made once, with the same bytes everywhere."""

from __future__ import annotations

import base64
import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from jobs_backup.testing.events import events

SIZES: Final = {"0.5 KB": 512, "1.25 KB": 1290, "4 KB": 4096}
"""Upper bounds for most events; their mean is close to the name."""
_COUNT: Final = 20_011
"""Events in a file; larger runs start over. It is 25 MB of 1.25 KB events, far more than any compressor looks back.

A prime: otherwise each of 1,000 sources would get the same few events repeatedly, which compress far too well.
"""
_SHORT: Final = 60
_RANDOM: Final = 3600

_PRODUCTS: Final = 2000
_USERS: Final = 5000
_EVENTS: Final = ("Order Completed", "Product Viewed", "Product Added", "Cart Viewed", "Checkout Started", "Search Performed")
_LOCALES: Final = ("en-US", "en-GB", "de-DE", "fr-FR", "pt-BR")
_AGENTS: Final = (
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 Version/17.5 Mobile/15E148 Safari/604.1",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:127.0) Gecko/20100101 Firefox/127.0",
)


def corpus(name: str, directory: Path) -> Path:
    """Return the file of a corpus in `directory`; create it if missing."""
    path = directory / f"{name.replace(' ', '-')}.ndjson"
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        with unfinished.open("wb") as file:
            file.writelines(event + b"\n" for event in _CORPORA[name]())
        unfinished.rename(path)
    return path


def track(count: int, *, size: int, seed: int = 1) -> Iterator[bytes]:
    """Track events of one shop's SDK: one schema, varying values. Real sources are often that uniform."""
    rng = random.Random(seed)
    for number in range(count):
        event = _track(number, rng)
        text = json.dumps(event, separators=(",", ":"))
        room = size - len(text)
        products: list[object] = []
        while room > 90:
            products.append(_product(rng))
            room -= len(json.dumps(products[-1], separators=(",", ":"))) + 1
        event["properties"] = {"order_id": f"o-{_below(10**6, rng)}", "currency": "USD", "products": products}
        yield json.dumps(event, separators=(",", ":")).encode()


def _track(number: int, rng: random.Random) -> dict[str, object]:
    user, page = _below(_USERS, rng), _below(_PRODUCTS, rng)
    minute, second = divmod(number // 20, 60)
    time = f"2026-03-01T{9 + minute // 60:02}:{minute % 60:02}:{second:02}"
    return {
        "type": "track",
        "messageId": _uuid(rng),
        "anonymousId": _uuid(rng),
        "userId": f"user-{user:05}",
        "event": _EVENTS[_below(len(_EVENTS), rng)],
        "channel": "web",
        "originalTimestamp": f"{time}.{_below(1000, rng):03}Z",
        "sentAt": f"{time}.{_below(1000, rng):03}Z",
        "context": {
            "library": {"name": "RudderLabs JavaScript SDK", "version": "3.7.1"},
            "locale": _LOCALES[_below(len(_LOCALES), rng)],
            "userAgent": _AGENTS[_below(len(_AGENTS), rng)],
            "ip": f"203.0.{_below(113, rng)}.{_below(256, rng)}",
            "page": {"path": f"/products/{page}", "url": f"https://shop.example/products/{page}"},
        },
        "properties": {},
    }


def _product(rng: random.Random) -> dict[str, object]:
    return {
        "product_id": f"p-{_below(_PRODUCTS, rng):05}",
        "price": round(rng.random() * 99, 2),
        "quantity": 1 + _below(5, rng),
        "name": "Trail shoe",
        "position": _below(40, rng),
    }


def _short() -> Iterator[bytes]:
    return (
        f'{{"messageId":"{number:09}","userId":"u{number % 9973:05}"'.encode().ljust(_SHORT - 1) + b"}" for number in range(_COUNT)
    )


def _random() -> Iterator[bytes]:
    """Incompressible payloads, for large objects from few events."""
    rng = random.Random(1)
    for number in range(_COUNT // 4):
        yield b'{"messageId":"%d","text":"%b"}' % (number, base64.b64encode(rng.randbytes(_RANDOM * 3 // 4)))


def _below(bound: int, rng: random.Random) -> int:
    # Not `randrange`: its draws may change between Python versions; those of `random` never do.
    return int(rng.random() * bound)


def _uuid(rng: random.Random) -> str:
    text = f"{rng.getrandbits(128):032x}"
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-a{text[17:20]}-{text[20:]}"


_CORPORA: Final[Mapping[str, Callable[[], Iterator[bytes]]]] = {
    **{f"mixed {name}": partial(events, _COUNT, size=size) for name, size in SIZES.items()},
    **{f"track {name}": partial(track, _COUNT, size=size) for name, size in SIZES.items()},
    "short": _short,
    "random": _random,
}


def lines(path: Path, count: int) -> Iterator[bytes]:
    """`count` lines with their ends, from the first one on; after the last line, start over."""

    def passes() -> Iterator[Iterator[bytes]]:
        while True:
            # As fast as possible: every contender pays this cost, and it hides their differences.
            with path.open("rb", buffering=1 << 20) as file:
                yield file

    return itertools.islice(itertools.chain.from_iterable(passes()), count)
