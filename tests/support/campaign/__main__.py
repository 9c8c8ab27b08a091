"""`python -m campaign`: run the crash campaign and print its findings."""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import time
from dataclasses import fields
from pathlib import Path
from typing import Final

import click
from campaign import clocks
from campaign.checks import Figures
from campaign.fleet import DECK, on_fleet_with_s3
from campaign.points import KILLS, Point
from campaign.runner import Crew, Plan, on_file, on_s3
from reaper import watch
from servers import weed

_FLEET: Final = "postgresql"
_TARGET_HELP: Final = "S3 and FILE, one after the other, unless given; postgresql: hosts that share a database, and S3."


@click.command()
@click.option("--kills", default=260, show_default=True, help="For each of the two.")
@click.option("--target", "--only", type=click.Choice(["S3", "FILE", "postgresql"]), default=None, help=_TARGET_HELP)
@click.option("--seed", default=None, type=int, help="Of what is drawn; what comes of it also depends on the machine.")
@click.option("--round-kills", default=50, show_default=True, help="After so many kills all is drained and checked.")
@click.option("--recorders", default=None, type=int, help="4; of a fleet 5.")
@click.option("--archivers", default=2, show_default=True)
@click.option("--both", default=None, type=int, help="Processes that record and send: 1; of a fleet 0.")
@click.option("--threads", default=4, show_default=True)
@click.option("--pace", default=0.04, show_default=True, help="Mean seconds between two calls of a thread.")
@click.option("--bulk", default=0.005, show_default=True, help="Share of the calls that record an object of several parts.")
@click.option("--many", default=30, show_default=True, help="Maximum number of events in a call of record_many.")
@click.option("--events", default=0, show_default=True, help="Minimum number of acknowledged events in a round.")
@click.option("--fault", "faults", multiple=True, type=click.Choice(sorted(set(DECK))), help="Of a fleet; all unless given.")
@click.option("--forks", default=3.0, show_default=True, help="Mean seconds between two forks of a worker; 0 for none.")
@click.option("--leaps", default=1.0, show_default=True, help="Mean seconds between two leaps of a clock; 0 for none.")
@click.option("--locks", default=0.2, show_default=True, help="In so many cycles the lock file of a live process is removed.")
@click.option("--every-point", is_flag=True, help="Fail where a point has killed nobody.")
def main(
    *,
    kills: int,
    target: str | None,
    seed: int | None,
    round_kills: int,
    recorders: int | None,
    archivers: int,
    both: int | None,
    threads: int,
    pace: float,
    bulk: float,
    many: int,
    events: int,
    faults: tuple[str, ...],
    forks: float,
    leaps: float,
    locks: float,
    every_point: bool,
) -> None:
    """Kill processes that record and send, at any moment, and see that every acknowledged event is in the bucket exactly once."""
    seed = random.randrange(1_000_000) if seed is None else seed
    is_fleet = target == "postgresql"
    recorders = (5 if is_fleet else 4) if recorders is None else recorders
    both = (0 if is_fleet else 1) if both is None else both
    crew = Crew(recorders, archivers, both, threads)
    plan = Plan(
        kills,
        seed,
        crew,
        pace=pace,
        bulk=bulk,
        many=many,
        events=events,
        forks=forks,
        leaps=leaps,
        locks=0.0 if is_fleet else locks,
    )
    directory = Path(tempfile.mkdtemp(prefix="campaign-"))
    click.echo(f"seed {seed}, in {directory}")
    found: dict[str, tuple[Figures, float]] = {}
    began = time.monotonic()
    if is_fleet:
        with weed(directory / "weed") as store:
            figures = on_fleet_with_s3(directory / "fleet", store, plan, round_kills, click.echo, cards=faults or DECK)
            found[_FLEET] = figures, time.monotonic() - began
    if target in (None, "S3"):
        with weed(directory / "weed") as store:
            found["S3"] = on_s3(directory / "s3", store, plan, round_kills, click.echo), time.monotonic() - began
    began = time.monotonic()
    if target in (None, "FILE"):
        found["FILE"] = on_file(directory / "file", plan, round_kills, click.echo), time.monotonic() - began
    _show(found)
    if any(figures.violations for figures, _ in found.values()):
        click.echo(f"\nthe files are in {directory}")
        sys.exit(1)
    shutil.rmtree(directory)
    if unused := [one for provider, (figures, _) in found.items() for one in _unused(provider, figures)]:
        click.echo("\n".join(["", "nobody was killed at:", *unused]))
        sys.exit(int(every_point))


def _show(found: dict[str, tuple[Figures, float]]) -> None:
    def row(name: str, values: list[object]) -> None:
        click.echo(f"{name.replace('_', ' '):<44}" + "".join(f"{value:>12}" for value in values))

    row("", list(found))
    row("seconds", [f"{seconds:.0f}" for _, seconds in found.values()])
    for one in fields(Figures):
        if one.type == "int":
            row(one.name, [f"{getattr(figures, one.name):,}" for figures, _ in found.values()])
    click.echo("\nkills at")
    for name in dict.fromkeys(point.name for target in found for point in _points(target)):
        row(f"  {name}", [figures.points[name] for figures, _ in found.values()])
    click.echo("\nclocks showed")
    for name in clocks.LEAPS:
        row(f"  {name}", [figures.clocks[name] for figures, _ in found.values()])
    click.echo("\nfaults")
    for name in sorted(set().union(*(figures.faults for figures, _ in found.values()))):
        row(f"  {name}", [figures.faults[name] for figures, _ in found.values()])
    for provider, (figures, _) in found.items():
        for violation in figures.violations:
            click.echo(f"\n{provider}: {violation}")


def _points(target: str) -> list[Point]:
    """The moments at which its processes are killed."""
    provider = "S3" if target == _FLEET else target
    return [point for point in KILLS["postgresql" if target == _FLEET else "sqlite"] if point.provider in ("", provider)]


def _unused(target: str, figures: Figures) -> list[str]:
    return [f"{target}: {point.name}" for point in _points(target) if not figures.points[point.name]]


if __name__ == "__main__":
    watch()
    main()
