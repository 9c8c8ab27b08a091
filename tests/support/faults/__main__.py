"""`python -m faults`: make one call after another fail, and print the violations."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import click
import msgspec
from faults.injector import build, temporary_directory, why_not
from faults.runner import Violation
from faults.sabotage import ALL, Sabotage, find
from faults.scenarios import SCENARIOS
from faults.sweep import ERRORS, KINDS, Figures, Plan, sweep
from reaper import watch

_HEAD = ("command", "kind", "counted", "places", "runs", "reached", "cautious", "violations")


@click.command()
@click.option(
    "--command",
    "commands",
    multiple=True,
    type=click.Choice([*SCENARIOS]),
    help="Command to sweep; may be repeated.  [default: all]",
)
@click.option("--kind", "kinds", multiple=True, type=click.Choice(KINDS), help="Kind of faults; may be repeated.  [default: all]")
@click.option("--errno", "errors", multiple=True, help="Error of system calls, such as EIO; may be repeated.  [default: six]")
@click.option("--count", default=1, show_default=True, help="Calls that fail in a row.")
@click.option("--sample", type=int, help="Runs of each command.  [default: the whole sweep]")
@click.option("--everywhere", is_flag=True, help="Try every error at every system call. Takes hours.")
@click.option("--seed", default=1, show_default=True)
@click.option("--workers", default=os.cpu_count() or 1, show_default=True)
@click.option("--limit", default=90.0, show_default=True, help="Seconds after which a command counts as hanging.")
@click.option("--root", type=click.Path(path_type=Path), help="Directory for the spools.  [default: /dev/shm if it exists]")
@click.option("--sabotage", "is_sabotaged", is_flag=True, help="Remove one guard of the code at a time: the sweep must find each.")
@click.option("--only", default="", help="With --sabotage: part of the names of the guards.")
@click.option("--report", type=click.Path(path_type=Path), help="File for the violations, as NDJSON.")
def main(
    *,
    commands: tuple[str, ...],
    kinds: tuple[str, ...],
    errors: tuple[str, ...],
    count: int,
    sample: int | None,
    everywhere: bool,
    seed: int,
    workers: int,
    limit: float,
    root: Path | None,
    is_sabotaged: bool,
    only: str,
    report: Path | None,
) -> None:
    """Make one call fail in each run, and check that the exit code is true and that nothing is lost or duplicated."""
    if reason := why_not():
        click.echo(f"skipped: {reason}")
        return
    plan = Plan(
        seed=seed,
        kinds=kinds or KINDS,
        errors=[getattr(errno, name) for name in errors] or ERRORS,
        count=count,
        sample=sample,
        everywhere=everywhere,
    )
    with temporary_directory(root) as directory:
        click.echo(f"seed {seed}, in {directory}")
        if is_sabotaged:
            sys.exit(_sabotage(directory, [one for one in ALL.values() if only in one.name], limit))
        found: list[Figures] = []
        began = time.monotonic()
        library = build(directory)
        for name in commands or SCENARIOS:
            found += sweep(directory, library, SCENARIOS[name], plan, workers=workers, limit=limit, tell=click.echo)
            if report is not None:
                _write(report, found)
    _show(found, time.monotonic() - began)
    sys.exit(int(any(figures.violations for figures in found)))


def _sabotage(directory: Path, chosen: Iterable[Sabotage], limit: float) -> int:
    library = build(directory)
    found = [find(one, directory / str(number), library, limit=limit, tell=click.echo) for number, one in enumerate(chosen)]
    click.echo(f"{sum(one is not None for one in found)} of {len(found)} were found")
    return int(None in found)


def _write(report: Path, found: Iterable[Figures]) -> None:
    with report.open("w") as file:
        for figures in found:
            for one in figures.violations:
                file.write(json.dumps(msgspec.to_builtins(one)) + "\n")


def _show(found: Iterable[Figures], seconds: float) -> None:
    places: dict[tuple[str, str], list[Violation]] = defaultdict(list)
    for figures in found:
        for one in figures.violations:
            where = f"{one.calls[0].name} at {' < '.join(one.calls[0].site[:2])}" if one.calls else "nothing failed"
            places[one.kind, where].append(one)
    click.echo()
    for (kind, where), violations in sorted(places.items(), key=lambda item: (item[0][0], -len(item[1]))):
        click.echo(f"{len(violations):>5} {kind}: {where}")
    click.echo()
    rows = [_HEAD, *(figures.row() for figures in found)]
    for row in rows:
        click.echo(f"{row[0]:<12} {row[1]:<8}" + "".join(f"{value:>10}" for value in row[2:-1]) + f"  {row[-1]}")
    for figures in found:
        for text, times in figures.cautious.most_common(20):
            click.echo(f"cautious, {figures.scenario} {figures.kind}, {times} times: {text}")
    click.echo(f"{sum(figures.runs for figures in found):,} runs in {seconds:.0f} s")


if __name__ == "__main__":
    watch()
    main()
