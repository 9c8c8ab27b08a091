"""`python -m benchmarks`: run the benchmarks and write the results."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click
from benchmarks import report
from benchmarks.runner import Bench
from benchmarks.scenarios import acknowledge, compression, end_to_end, fleet, hooks, memory, record, recovery, size, startup, upload
from reaper import watch

SCENARIOS: Final[dict[str, Callable[[Bench], None]]] = {
    one.NAME: one.run
    for one in (end_to_end, record, upload, recovery, acknowledge, fleet, startup, memory, hooks, size, compression)
}
QUICK: Final = (end_to_end.NAME, record.NAME, startup.NAME, hooks.NAME)


@click.command()
@click.option("--quick", is_flag=True, help="The main ratios, in less than 3 minutes.")
@click.option("--only", multiple=True, type=click.Choice(list(SCENARIOS)), help="Leave out all others.")
@click.option("--contender", "contenders", multiple=True, help="The same for who is measured.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--scale", default=1.0, show_default=True, help="Multiplies the numbers of events; a small one is for a look.")
@click.option("--directory", type=click.Path(path_type=Path), default=Path("build/bench"), show_default=True, help="For its files.")
@click.option("--output", type=click.Path(path_type=Path), default=None, help="For the results.  [default: DIRECTORY/results]")
def main(
    *,
    quick: bool,
    only: tuple[str, ...],
    contenders: tuple[str, ...],
    rounds: int,
    scale: float,
    directory: Path,
    output: Path | None,
) -> None:
    """Measure jobs-backup and others that write events into S3, all in one run, in turn."""
    directory = directory.absolute()
    bench = Bench(directory, rounds, scale, quick, frozenset(contenders), lambda text: click.echo(text, err=True))
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    try:
        for name, run in SCENARIOS.items():
            if name in (only or (QUICK if quick else SCENARIOS)):
                run(bench)
    finally:  # a run takes long: keep its readings however it ends
        report.write(report.results(bench.readings, command), output or directory / "results")
    report.show(bench.readings)
    if any(one.error for one in bench.readings):
        click.echo("some of them failed: see above")


if __name__ == "__main__":
    watch()
    main()
