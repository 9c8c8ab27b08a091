"""`python -m campaign`: run it, and print what it found."""

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
from campaign.checks import Figures
from campaign.points import KILLS
from campaign.runner import Crew, Plan, on_file, on_s3
from servers import weed

_ZERO: Final = ("lost", "duplicates", "damaged", "torn_calls", "misplaced", "open_uploads", "left_over", "other")


@click.command()
@click.option("--kills", default=260, show_default=True, help="For each of the two.")
@click.option("--only", type=click.Choice(["S3", "FILE"]), default=None)
@click.option("--seed", default=None, type=int, help="Of what is drawn; what comes of it also depends on the machine.")
@click.option("--round-kills", default=50, show_default=True, help="After so many kills all is drained and checked.")
@click.option("--recorders", default=4, show_default=True)
@click.option("--archivers", default=2, show_default=True)
@click.option("--both", default=1, show_default=True)
@click.option("--threads", default=4, show_default=True)
@click.option("--keep", is_flag=True, help="Keep all files, also where nothing was found.")
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
    keep: bool,
) -> None:
    """Kill processes that record and send, at any moment, and see that every acknowledged event is in the bucket exactly once."""
    seed = random.randrange(1_000_000) if seed is None else seed
    plan = Plan(kills, seed, Crew(recorders, archivers, both, threads))
    directory = Path(tempfile.mkdtemp(prefix="campaign-"))
    click.echo(f"seed {seed}, in {directory}")
    found: dict[str, tuple[Figures, float]] = {}
    began = time.monotonic()
    if only != "FILE":
        with weed(directory / "weed") as store:
            found["S3"] = on_s3(directory / "s3", store, plan, round_kills=round_kills), time.monotonic() - began
    began = time.monotonic()
    if only != "S3":
        found["FILE"] = on_file(directory / "file", plan, round_kills=round_kills), time.monotonic() - began
    _show(found)
    if any(figures.violations for figures, _ in found.values()):
        click.echo(f"the files are in {directory}")
        sys.exit(1)
    if not keep:
        shutil.rmtree(directory)


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
    click.echo("\nfaults")
    for name in sorted(set().union(*(figures.faults for figures, _ in found.values()))):
        row(f"  {name}", [figures.faults[name] for figures, _ in found.values()])
    for provider, (figures, _) in found.items():
        for violation in figures.violations:
            click.echo(f"\n{provider}: {violation}")


if __name__ == "__main__":
    main()
