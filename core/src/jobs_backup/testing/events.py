"""Realistic events for the demo, the tests and the benchmarks: RudderStack's six kinds, seeded, the same bytes everywhere.

`python -m jobs_backup.testing.events --count 1000 --seed 7` writes them as NDJSON to stdout.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, TypeVar

T = TypeVar("T")

MIN_BYTES: Final = 512
MAX_BYTES: Final = 4096
_FIRST_EVENT: Final = datetime(2026, 3, 1, 8, 59, tzinfo=UTC)
_MEAN_GAP_MS: Final = 12
_USERS: Final = 1024
_ITEMS: Final = 2048

# As JSON text. A float would change most of them: it loses digits, or writes the same number differently.
_NUMBERS: Final = (
    "0", "1", "2", "3", "17", "250", "-1", "19.99", "4.5", "1.10", "100.00", "-0.0", "1e5", "1E+2", "2.50e-7",
    "0.30000000000000004", "12345678901234567890", "-9223372036854775809", "9007199254740993", "3.14159265358979323846",
)  # fmt: skip

# Also as JSON text: some of the same characters are escaped, some are not, as different SDKs send them. U+2028 and U+0085 end no
# line here.
_TEXTS: Final = (
    '"Wireless headphones"', '"Trail shoe, size 42½"', '"Große Kanne für Öl"', '"L\'été à la plage, édition limitée"',
    '"Zażółć gęślą jaźń"', '"無線イヤホン ノイズキャンセリング"', '"中文商品名称【限量版】"', '"무선 이어폰"', '"سماعات لاسلكية"',
    '"אוזניות אלחוטיות"', '"Беспроводные наушники"', '"वायरलेस हेडफ़ोन"', '"🎧 Summer sale 🏖️🔥"', '"👩‍👩‍👧‍👦 family pack"',
    '"\\ud83d\\ude80 launch"', '"\\u00fcber \\u4e2d\\u6587"', '"say \\"hi\\" \\\\ now"', '"line one\\nline two\\ttab\\r\\n"',
    '"https:\\/\\/shop.example\\/p?a=1&b=2"', '"<b>bold<\\/b> &amp; \'quoted\'"', '"a\u2028b\u0085c"', '"e\u0301 combined"',
    '""', '" padded "', '"{\\"json\\": \\"in a string\\"}"', '"null"', '"42"',
)  # fmt: skip

_TRACKS: Final = (
    "Order Completed", "Product Viewed", "Product Added", "Cart Viewed", "Checkout Started", "Signed Up", "Signed In",
    "Coupon Applied", "Search Performed", "Video Played", "Invite Sent", "Article Réad", "商品を見た", "🎉 Level Up",
)  # fmt: skip
_PAGES: Final = ("Home", "Pricing", "Docs", "Cart", "Checkout", "Über uns", "Blog", "サポート")
_SCREENS: Final = ("Feed", "Profile", "Settings", "Player", "Einstellungen", "設定")
_COMPANIES: Final = ("Initech", "Søstrene Grå A/S", "株式会社サンプル", "Globex GmbH & Co. KG", 'O\'Brien "and" Sons')
_FIRST_NAMES: Final = ("Ada", "Grace", "Linus", "Zoë", "Łukasz", "María José", "明", "Фёдор", "فاطمة", "Seán", "Ngọc", "יעל")
_LAST_NAMES: Final = (
    "Lovelace",
    "Hopper",
    "O'Neil",
    "Müller-Lüdenscheidt",
    "佐藤",
    "Иванова",
    "الزهراء",
    "Nguyễn",
    "Çelik",
    "van der Berg",
)
_LOCALES: Final = ("en-US", "en-GB", "de-DE", "fr-FR", "ja-JP", "zh-CN", "ar-EG", "he-IL", "pt-BR", "ru-RU", "hi-IN")
_CURRENCIES: Final = ("USD", "EUR", "JPY", "GBP", "BRL")
_CITIES: Final = (("Köln", "DE"), ("São Paulo", "BR"), ("東京", "JP"), ("القاهرة", "EG"), ("Austin", "US"), ("Kraków", "PL"))
_AGENTS: Final = (
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 Version/17.5 Mobile/15E148 Safari/604.1",
    "Mozilla/5.0 (X11; Linux x86_64; rv:127.0) Gecko/20100101 Firefox/127.0",
)

# The kinds in a web shop's proportions, and the list that fills an event of each kind up to its size.
_KINDS: Final = ("track",) * 12 + ("page",) * 4 + ("identify",) * 3 + ("screen",) * 2 + ("group", "alias")
_LISTS: Final = {
    "track": b'"products":[', "page": b'"recommendations":[', "screen": b'"recommendations":[',
    "identify": b'"wishlist":[', "group": b'"licenses":[', "alias": b'"merged":[',
}  # fmt: skip


class _User(NamedTuple):
    """What all events of a user share, as members of a JSON object: ids, and the context in three levels of detail."""

    ids: bytes
    contexts: tuple[bytes, bytes, bytes]


class _Pools(NamedTuple):
    users: list[_User]
    items: list[bytes]
    heads: dict[str, list[bytes]]


def events(count: int, *, seed: int = 1, size: int | None = None) -> Iterator[bytes]:
    """Generate `count` events, each one JSON object on one line without a newline, with its own `messageId`.

    The same seed gives the same bytes on every version of Python. Sizes are 512 to 4,096 bytes, 1.2 KB on average, or about `size`
    bytes each; memory does not grow with `count`.
    """
    pools = _pools()
    rng = random.Random(seed)
    draw = rng.random
    clock = _Clock()
    for _ in range(count):
        chance = draw()
        chance *= chance
        target = MIN_BYTES + int((MAX_BYTES - MIN_BYTES) * chance * chance) if size is None else size
        kind = _KINDS[int(draw() * len(_KINDS))]
        user = pools.users[int(draw() * _USERS)]
        heads = pools.heads[kind]
        start = b"".join(
            (
                b'{"messageId":"', _uuid(rng), b'",', user.ids, clock.stamps(draw()), b',"context":{',
                user.contexts[(target > 950) + (target > 1500)], b"},", heads[int(draw() * len(heads))],
            )
        )  # fmt: skip
        yield start + _items(pools.items, _LISTS[kind], target - len(start), rng) + b"}}"


def _items(pool: Sequence[bytes], opening: bytes, room: int, rng: random.Random) -> bytes:
    """A list with as many items as there is room for, as a further member of an object; empty if there is room for none."""
    room -= len(opening) + 4
    chosen: list[bytes] = []
    while room > 0:
        item = pool[int(rng.random() * len(pool))]
        room -= len(item) + 1
        if room >= 0:
            chosen.append(item)
    return b"," + opening + b",".join(chosen) + b"]" if chosen else b""


class _Clock:
    """The events' time: it begins at a fixed moment and advances with every event."""

    def __init__(self) -> None:
        self._now = 0
        self._minute = -1
        self._prefix = ""

    def stamps(self, chance: float) -> bytes:
        """The times of the next event: created on the device, sent up to 2 s later, received a little after that."""
        self._now += int(chance * 2 * _MEAN_GAP_MS)
        created = self._now
        sent = created + int(chance * 2000)
        times = f'"originalTimestamp":"{self._text(created)}","sentAt":"{self._text(sent)}","receivedAt":"{self._text(sent + 38)}"'
        return times.encode()

    def _text(self, milliseconds: int) -> str:
        minute, rest = divmod(milliseconds, 60_000)
        if minute != self._minute:
            self._minute = minute
            self._prefix = (_FIRST_EVENT + timedelta(minutes=minute)).strftime("%Y-%m-%dT%H:%M:")
        return f"{self._prefix}{rest // 1000:02d}.{rest % 1000:03d}Z"


def _uuid(rng: random.Random) -> bytes:
    text = f"{rng.getrandbits(128):032x}"
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-a{text[17:20]}-{text[20:]}".encode()


@functools.cache
def _pools() -> _Pools:
    rng = random.Random(20260301)
    return _Pools(
        users=[_user(number, rng) for number in range(_USERS)],
        items=[_item(number, rng) for number in range(_ITEMS)],
        heads={kind: [_head(kind, rng) for _ in range(64)] for kind in _LISTS},
    )


def _user(number: int, rng: random.Random) -> _User:
    anonymous = _uuid(rng).decode()
    known = None if number % 5 == 0 else f"user-{number:05d}"
    address = f"203.0.{number % 114}.{int(rng.random() * 256)}"
    ids = {
        "anonymousId": anonymous,
        "userId": known,
        "channel": "mobile" if number % 3 == 0 else "web",
        "rudderId": _uuid(rng).decode(),
        "request_ip": address,
        "integrations": _pick(({"All": True}, {"All": False, "Amplitude": True, "Salesforce": {"retry": None}}, {}), rng),
    }
    small = {
        "library": _pick(
            ({"name": "RudderLabs JavaScript SDK", "version": "3.7.1"}, {"name": "rudder-android", "version": "1.23.0"}), rng
        ),
        "locale": _pick(_LOCALES, rng),
        "ip": address,
    }
    medium = small | {
        "userAgent": _pick(_AGENTS, rng),
        "screen": {"density": 2, "width": 1440, "height": 900, "innerWidth": 1440 - number % 200, "innerHeight": 789},
        "app": {"name": "Shop", "version": f"4.{number % 30}.0", "build": str(4000 + number), "namespace": "com.example.shop"},
        "os": _pick(({"name": "iOS", "version": "17.5"}, {"name": "Android", "version": "14"}, {"name": "", "version": ""}), rng),
        "sessionId": 1772350000000 + number,
    }
    large = medium | {
        "device": {
            "id": anonymous,
            "manufacturer": "Apple",
            "model": "iPhone 15 Pro",
            "name": f"Phone of {_pick(_FIRST_NAMES, rng)}",
            "type": "ios",
        },
        "traits": _traits(known, rng),
        "campaign": {"name": "spring_sale 🌷", "source": "newsletter", "medium": "email", "term": None, "content": "top banner"},
        "page": {
            "path": "/products",
            "referrer": 'https://www.example.com/?q=a%20b&x="y"',
            "search": "?utm=1",
            "title": "Catálogo",
        },
        "network": {"bluetooth": False, "carrier": "", "cellular": True, "wifi": None},
        "timezone": "Europe/Berlin",
        "consentManagement": {"allowedConsentIds": [], "deniedConsentIds": ["C0002", "C0004"]},
    }
    return _User(_members(ids, rng) + b",", (_members(small, rng), _members(medium, rng), _members(large, rng)))


def _traits(user: str | None, rng: random.Random) -> dict[str, Any]:
    city, country = _pick(_CITIES, rng)
    return {
        "firstName": _pick(_FIRST_NAMES, rng),
        "lastName": _pick(_LAST_NAMES, rng),
        "email": f"{user}@example.com" if user else None,
        "age": 18 + int(rng.random() * 60),
        "address": {"city": city, "country": country, "postalCode": f"{int(rng.random() * 100_000):05d}", "street": None},
        "plan": _pick(("free", "pro", "enterprise"), rng),
    }


def _item(number: int, rng: random.Random) -> bytes:
    """A list entry: mostly a product, some with literal numbers and texts that are easily corrupted."""
    parts = [f'"product_id":"p-{number:05d}","name":{_pick(_TEXTS, rng)},"price":{_pick(_NUMBERS, rng)}']
    if rng.random() < 0.5:
        parts.append(f'"quantity":{int(rng.random() * 9) + 1},"brand":{_pick(_TEXTS, rng)},"coupon":null')
    if rng.random() < 0.3:
        parts.append(f'"tags":[{_pick(_TEXTS, rng)},{_pick(_NUMBERS, rng)},true,[],{{"deep":[[{_pick(_NUMBERS, rng)}],null]}}]')
    return ("{" + ",".join(parts) + "}").encode()


def _head(kind: str, rng: random.Random) -> bytes:
    """The members that make an event one of its kind; the last one is an object, left open for the list."""
    common = f'"currency":"{_pick(_CURRENCIES, rng)}","value":{_pick(_NUMBERS, rng)},"label":{_pick(_TEXTS, rng)}'
    url = _json(f"https://shop.example/{_pick(_PAGES, rng).lower().replace(' ', '-')}", rng)
    company = _json(_pick(_COMPANIES, rng), rng)
    number = int(rng.random() * 100_000)
    own = {
        "track": f'"event":{_json(_pick(_TRACKS, rng), rng)},"properties":{{"order_id":"o-{number}"',
        "page": f'"name":{_json(_pick(_PAGES, rng), rng)},"properties":{{"url":{url},"referrer":null',
        "screen": f'"name":{_json(_pick(_SCREENS, rng), rng)},"properties":{{"previous":null',
        "identify": f'"traits":{{{_members(_traits(f"user-{number}", rng), rng).decode()}',
        "group": f'"groupId":"g-{number}","traits":{{"name":{company},"employees":{number}',
        "alias": f'"previousId":"user-{number}","properties":{{"reason":"signed in"',
    }[kind]
    return f'"type":"{kind}",{own},{common}'.encode()


def _pick(pool: Sequence[T], rng: random.Random) -> T:
    # Not `choice`: its draws may change between versions of Python, those of `random` never do.
    return pool[int(rng.random() * len(pool))]


def _json(value: Any, rng: random.Random) -> str:
    """Encode as an SDK would: some of them escape everything that is not ASCII."""
    return json.dumps(value, ensure_ascii=rng.random() < 0.2, separators=(",", ":"))


def _members(value: dict[str, Any], rng: random.Random) -> bytes:
    return _json(value, rng)[1:-1].encode()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command: write NDJSON to stdout or a file."""
    parser = argparse.ArgumentParser(prog="python -m jobs_backup.testing.events", description="Write realistic events as NDJSON.")
    parser.add_argument("--count", type=int, required=True, metavar="N", help="number of events")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="seed: the same one gives the same events (default: 1)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="output file (default: stdout)")
    chosen = parser.parse_args(arguments)
    if chosen.output is None:
        _write(chosen.count, chosen.seed, sys.stdout.buffer)
    else:
        with chosen.output.open("wb") as file:
            _write(chosen.count, chosen.seed, file)


def _write(count: int, seed: int, file: BinaryIO) -> None:
    file.writelines(event + b"\n" for event in events(count, seed=seed))


if __name__ == "__main__":
    main()
