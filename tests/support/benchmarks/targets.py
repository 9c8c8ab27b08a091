"""The goals, and whether a run reached them. All are ratios within one run, or hardly depend on the machine."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from benchmarks.runner import Reading
from benchmarks.scenarios import end_to_end, hooks, memory, record, recovery, size, startup

OURS: Final = "jobs-backup"
_MIB: Final = 1 << 20


class Measure(NamedTuple):
    """Which value (see `value`) of which readings to look at."""

    scenario: str
    case: str
    contender: str
    name: str


class Goal(NamedTuple):
    """A goal: `measure`, divided by `base` if given and by `unit`, is at least or at most `limit`."""

    name: str
    measure: Measure
    limit: float
    at_least: bool
    base: Measure | None = None
    unit: float = 1.0


class Outcome(NamedTuple):
    """The medians; `low` and `high` are the extremes of single rounds. None if not measured, or if a contender failed."""

    goal: Goal
    measured: float | None
    low: float | None = None
    high: float | None = None

    @property
    def reached(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured >= self.goal.limit if self.goal.at_least else self.measured <= self.goal.limit


_DERIVED: Final = {
    "rate": ("events", "seconds", 1.0),
    "each": ("seconds", "events", 1.0),
    "cpu_million": ("cpu", "events", 1e6),
    "requests_million": ("requests", "events", 1e6),
    "stored_million": ("stored", "events", 1e6),
    "requests_object": ("requests", "puts", 1.0),
    "object_bytes": ("stored", "puts", 1.0),
    "byte_rate": ("bytes", "seconds", 1.0),
    "size": ("stored", "gzip_6", 1.0),
}
"""Values that are the quotient of two others, times a factor."""


def value(reading: Reading, name: str) -> float | None:
    """A value of a reading, measured or derived; None if there is none."""
    above, below, factor = _DERIVED.get(name, (name, "", 1.0))
    values = {"": 1.0, **reading.values}
    if above not in values or not values.get(below):
        return None
    return values[above] / values[below] * factor


def judged(readings: Sequence[Reading], goals: Iterable[Goal]) -> list[Outcome]:
    """Every goal, including those without readings."""
    return [_judged(readings, goal) for goal in goals]


def _judged(readings: Sequence[Reading], goal: Goal) -> Outcome:
    found = _rounds(readings, goal.measure)
    if goal.base is None:
        parts = {number: one / goal.unit for number, one in found.items()}
        return Outcome(goal, statistics.median(parts.values()), *_extremes(parts)) if parts else Outcome(goal, None)
    base = _rounds(readings, goal.base)
    if not found or not base:
        return Outcome(goal, None)
    ratio = statistics.median(found.values()) / statistics.median(base.values()) / goal.unit
    parts = {number: found[number] / base[number] / goal.unit for number in found.keys() & base.keys()}
    return Outcome(goal, ratio, *_extremes(parts))


def _extremes(parts: dict[int, float]) -> tuple[float | None, float | None]:
    return (min(parts.values()), max(parts.values())) if parts else (None, None)


def _rounds(readings: Sequence[Reading], measure: Measure) -> dict[int, float]:
    """Map each round to its value."""
    return {
        one.round: found
        for one in readings
        if (one.scenario, one.case, one.contender) == measure[:3] and (found := value(one, measure.name)) is not None
    }


def _end_to_end() -> Iterator[Goal]:
    limits = {
        "bytes": {"smart_open": 5.0, "smart_open + isal": 2.0, "s3fs + gzip 6": 3.0, "no spool": 0.75},
        "dicts": {"smart_open": 3.5},
    }
    for kind, corpus in (("bytes", "mixed"), ("bytes", "track"), ("dicts", "track")):
        for sources in (1, 100):
            case = end_to_end.title("http", f"{corpus} 1.25 KB", kind, sources)
            ours = Measure(end_to_end.NAME, case, OURS, "rate")
            what = f"{kind}, {corpus}, {sources} source{'s' * (sources > 1)}"
            for other, limit in limits[kind].items():
                yield Goal(f"events/s, {what}: x {other}", ours, limit, True, ours._replace(contender=other))
        case = end_to_end.title("http", f"{corpus} 1.25 KB", kind, 1)
        yield Goal(f"requests an object, {kind}, {corpus}", Measure(end_to_end.NAME, case, OURS, "requests_object"), 1.0, False)


def _goals() -> Iterator[Goal]:
    yield from _end_to_end()
    one = Measure(record.NAME, record.CASE, record.ours(1), "rate")
    yield Goal("record(), 16 threads: x 1 thread", one._replace(contender=record.ours(16)), 8.0, True, one)
    each = one._replace(name="each")
    yield Goal("record(), 1 thread: x a bare SQLite commit", each, 1.3, False, each._replace(contender=record.SQLITE))
    base = Measure(memory.NAME, memory.BASE, OURS, "peak_rss")
    yield Goal(f"peak RSS, MiB: {memory.BASE}", base, 130.0, False, unit=_MIB)
    for case, corpus in ((memory.BASE, "mixed"), (memory.TRACK, "track")):
        cpu = Measure(memory.NAME, case, OURS, "cpu_million")
        yield Goal(f"CPU s a million events, bytes, {corpus}", cpu, 5.0, False)
    for case in memory.CASES:
        if case != memory.BASE:
            yield Goal(f"peak RSS, {case}: x {memory.BASE}", base._replace(case=case), 1.1, False, base)
    for way in size.WAYS:
        for corpus in size.CORPORA:
            measure = Measure(size.NAME, size.title(way, corpus), OURS, "size")
            yield Goal(f"size, {way}, {corpus}: x gzip -6", measure, 1.12, False)
    yield Goal("a hook call with its retry policy, us", Measure(hooks.NAME, hooks.CASE, OURS, "each"), 25.0, False, unit=1e-6)
    python = Measure(startup.NAME, startup.CASE, startup.PYTHON, "seconds")
    for one_command in startup.COMMANDS:
        name, limit = startup.command(one_command), 6.0 if one_command == "--version" else 12.0
        yield Goal(f"{name}: x {startup.PYTHON}", python._replace(contender=name), limit, False, python)
    for name in (*map(startup.command, startup.COMMANDS), startup.IMPORT):
        yield Goal(f"{name}: modules of SDKs", Measure(startup.NAME, startup.SDKS, name, "sdk_modules"), 0.0, False)
    yield Goal("first upload of 10 million waiting events, s", Measure(recovery.NAME, recovery.CASE, OURS, "seconds"), 2.0, False)


GOALS: Final = tuple(_goals())
