"""`python -m campaign`: run the crash campaign and print its findings."""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import time
from dataclasses import fields
from pathlib import Path

import click
from campaign import clocks
from campaign.checks import Figures
from campaign.points import KILLS
from campaign.runner import Crew, Plan, on_file, on_s3
from reaper import watch
from servers import weed


@click.command()
@click.option("--kills", default=260, show_default=True, help="For each of the two.")
@click.option("--only", type=click.Choice(["S3", "FILE"]), default=None)
@click.option("--seed", default=None, type=int, help="Of what is drawn; what comes of it also depends on the machine.")
@click.option("--round-kills", default=50, show_default=True, help="After so many kills all is drained and checked.")
@click.option("--recorders", default=4, show_default=True)
@click.option("--archivers", default=2, show_default=True)
@click.option("--both", default=1, show_default=True)
@click.option("--threads", default=4, show_default=True)
@click.option("--forks", default=3.0, show_default=True, help="Mean seconds between two forks of a worker; 0 for none.")
@click.option("--leaps", default=1.0, show_default=True, help="Mean seconds between two leaps of a clock; 0 for none.")
@click.option("--locks", default=0.2, show_default=True, help="In so many cycles the lock file of a live process is removed.")
@click.option("--every-point", is_flag=True, help="Fail where a point has killed nobody.")
def main(
    *,
    kills: int,
    only: str | None,
    seed: int | None,
    round_kills: int,
    recorders: int,
    archivers: int,
    both: int,
    threads: int,
    forks: float,
    leaps: float,
    locks: float,
    every_point: bool,
) -> None:
    """Kill processes that record and send, at any moment, and see that every acknowledged event is in the bucket exactly once."""
    seed = random.randrange(1_000_000) if seed is None else seed
    plan = Plan(kills, seed, Crew(recorders, archivers, both, threads), forks=forks, leaps=leaps, locks=locks)
    directory = Path(tempfile.mkdtemp(prefix="campaign-"))
    click.echo(f"seed {seed}, in {directory}")
    found: dict[str, tuple[Figures, float]] = {}
    began = time.monotonic()
    if only != "FILE":
        with weed(directory / "weed") as store:
            found["S3"] = on_s3(directory / "s3", store, plan, round_kills, click.echo), time.monotonic() - began
    began = time.monotonic()
    if only != "S3":
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
    for point in KILLS:
        row(f"  {point.name}", [figures.points[point.name] for figures, _ in found.values()])
    click.echo("\nclocks showed")
    for name in clocks.LEAPS:
        row(f"  {name}", [figures.clocks[name] for figures, _ in found.values()])
    click.echo("\nfaults")
    for name in sorted(set().union(*(figures.faults for figures, _ in found.values()))):
        row(f"  {name}", [figures.faults[name] for figures, _ in found.values()])
    for provider, (figures, _) in found.items():
        for violation in figures.violations:
            click.echo(f"\n{provider}: {violation}")


def _unused(provider: str, figures: Figures) -> list[str]:
    return [f"{provider}: {point.name}" for point in KILLS if point.provider in ("", provider) and not figures.points[point.name]]


if __name__ == "__main__":
    watch()
    main()
