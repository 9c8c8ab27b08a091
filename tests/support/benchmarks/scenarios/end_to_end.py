"""Events from memory or a file into gzip objects: all of a contender's work, from opening its client to the last answer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Final, NamedTuple

from benchmarks.runner import Bench, Target, Values, target

NAME: Final = "end_to_end"


class Contender(NamedTuple):
    """A module of `contenders`, and its variant.

    `share`: the fraction of the events that a slow contender processes. Only with a single source: otherwise its objects would be
    smaller, too. `same_lines`: it writes the same lines as jobs-backup.
    """

    module: str
    variant: str = ""
    share: float = 1.0
    same_lines: bool = False


BYTES: Final = {
    "jobs-backup": Contender("ours"),
    "no spool": Contender("no_spool"),
    "smart_open": Contender("smart_open", share=0.25),
    "smart_open + isal": Contender("smart_open", "isal"),
    "smart_open + isal, same lines": Contender("smart_open", "isal", same_lines=True),
    "s3fs + gzip 6": Contender("s3fs", "6", share=0.5),
    "s3fs + isal": Contender("s3fs", "isal"),
    "obstore + isal": Contender("obstore"),
}
DICTS: Final = {
    "jobs-backup": Contender("ours"),
    "no spool": Contender("no_spool"),
    "smart_open": Contender("smart_open", share=0.25),
    "smart_open + isal": Contender("smart_open", "isal"),
    "s3fs + gzip 6": Contender("s3fs", "6", share=0.5),
    "obstore + isal": Contender("obstore"),
    "Quix Streams": Contender("quix", share=0.25),
}
ON_WEED: Final = {"dlt": Contender("dlt", share=0.1)}
"""Contenders that cannot run against the sink: they read back what they wrote."""
QUICK: Final = ("jobs-backup", "no spool", "smart_open", "smart_open + isal", "smart_open + isal, same lines", "s3fs + gzip 6")
QUICK_DICTS: Final = ("jobs-backup", "smart_open")


class Case(NamedTuple):
    """The task of all contenders; `events` for the fastest ones."""

    corpus: str
    kind: str
    sources: int
    events: int

    def title(self, store: str) -> str:
        return title(store, self.corpus, self.kind, self.sources)


def title(store: str, corpus: str, kind: str, sources: int) -> str:
    return f"{store}, {corpus}, {kind}, {sources:,} source{'s' * (sources > 1)}"


_EVENTS: Final = {"0.5 KB": 500_000, "1.25 KB": 300_000, "4 KB": 100_000}
_EVENTS_OF_MANY: Final = 200_000
"""Events with many sources, which are slow for most contenders."""


def _cases(store: str) -> Iterator[Case]:
    for kind, corpus in (("bytes", "mixed"), ("bytes", "track"), ("dicts", "track")):
        if store == "http" or corpus != "track" or kind != "bytes":
            for sources in (1, 100):
                events = _EVENTS["1.25 KB"] if sources == 1 else _EVENTS_OF_MANY
                yield Case(f"{corpus} 1.25 KB", kind, sources, events)
    if store == "http":
        for sources in (10, 1000):
            yield Case("mixed 1.25 KB", "bytes", sources, _EVENTS_OF_MANY)
        for size in ("0.5 KB", "4 KB"):
            yield Case(f"mixed {size}", "bytes", 1, _EVENTS[size])
            yield Case(f"track {size}", "dicts", 1, _EVENTS[size])


def _quick() -> Iterator[Case]:
    yield Case("mixed 1.25 KB", "bytes", 1, 200_000)
    yield Case("track 1.25 KB", "bytes", 1, 200_000)
    yield Case("mixed 1.25 KB", "bytes", 100, 120_000)
    yield Case("track 1.25 KB", "dicts", 1, 200_000)


def run(bench: Bench) -> None:
    for store in ("http",) if bench.quick else ("http", "TLS", "weed"):
        with target(store, bench) as to:
            for case in _quick() if bench.quick else _cases(store):
                contenders = {name: partial(_measure, bench, to, case, one) for name, one in _contenders(bench, store, case)}
                bench.interleaved(NAME, case.title(store), contenders)


def _contenders(bench: Bench, store: str, case: Case) -> Iterator[tuple[str, Contender]]:
    everyone = BYTES if case.kind == "bytes" else DICTS | (ON_WEED if store == "weed" else {})
    quick = QUICK if case.kind == "bytes" else QUICK_DICTS
    for name, contender in everyone.items():
        if not bench.quick or name in quick:
            yield name, contender


def _measure(bench: Bench, to: Target, case: Case, contender: Contender) -> Values:
    share = contender.share if case.sources == 1 else 1.0
    events = bench.count(round(case.events * share), case.sources)
    return to.measured(
        bench,
        contender.module,
        corpus=bench.corpus(case.corpus),
        kind=case.kind,
        sources=case.sources,
        events=events,
        variant=contender.variant,
        same_lines=contender.same_lines,
    )
