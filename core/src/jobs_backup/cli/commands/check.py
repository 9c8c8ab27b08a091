"""`jobs-backup check`: whether the settings are valid, the bucket answers, and what is allowed there."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import Final, cast

import click
import msgspec

from jobs_backup.checks.permissions import Report, Right, State
from jobs_backup.checks.permissions import check as examine
from jobs_backup.cli.options import INCOMPLETE, MISUSED, with_environment
from jobs_backup.cli.process import read_settings, summarize_failures
from jobs_backup.cli.streams import print_json
from jobs_backup.util.logs import printable

_LEFT: Final = {"object": "", "upload": " (an unfinished upload)", "unsure": " (possibly: the response was lost)"}
_GOOD: Final = (State.GRANTED, State.SUPPORTED)
_BAD: Final = (State.REFUSED, State.FAILED)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@with_environment
def check(as_json: bool) -> None:
    """Test your credentials using only the permissions backups need.

    Writes two small objects below <prefix>/jobs-backup-check/, and deletes them if permitted. Shows which permissions are missing,
    and which are not needed.

    Exit codes: 0 events can be backed up; 1 not now, try again; 2 something must be changed first.

    \b
    Example:
      jobs-backup check --env-file docker.env
    """
    settings = read_settings()
    summarize_failures()
    report = msgspec.convert(_printable(msgspec.to_builtins(examine(settings, os.environ))), Report)
    if as_json:
        print_json(report)
    else:
        for line in _lines(report):
            click.echo(line)
    if not report.ready:
        sys.exit(INCOMPLETE if report.may_pass else MISUSED)


def _printable(found: object) -> object:
    """Make every text in it printable on one line, whatever the store has said."""
    if isinstance(found, str):
        return printable(found)
    if isinstance(found, dict):
        return {name: _printable(value) for name, value in cast(dict[str, object], found).items()}
    if isinstance(found, list):
        return [_printable(value) for value in cast(list[object], found)]
    return found


def _lines(report: Report) -> Iterator[str]:
    yield ", ".join(_heading(report))
    for title, needed in (("needed", True), ("optional", False)):
        if rights := [right for right in report.rights if right.needed is needed]:
            yield ""
            yield click.style(title, bold=True)
            yield from _table(rights)
    remarks = [
        *(f"{click.style('note:', fg='yellow')} {note}" for note in report.notes),
        *(f"{click.style('warning:', fg='yellow', bold=True)} {warning}" for warning in report.warnings),
        *(f"left in the bucket: {one.key}{_LEFT[one.what]}" for one in report.left),
    ]
    if remarks:
        yield ""
        yield from remarks
    yield ""
    yield _verdict(report)


def _heading(report: Report) -> Iterator[str]:
    yield click.style(report.store, bold=True)
    yield f"prefix {report.prefix}" if report.prefix else "no prefix"
    if report.region:
        yield f"region {report.region}"
    if report.clock_skew is not None:
        near = abs(report.clock_skew) <= 1.5  # the store reports whole seconds
        yield "clocks agree" if near else f"clock {abs(report.clock_skew):,.0f} s {'ahead' if report.clock_skew > 0 else 'behind'}"


def _table(rights: Iterable[Right]) -> Iterator[str]:
    for right in rights:
        purpose = f"for {right.purpose}" if right.purpose else ""
        yield f"  {_mark(right)} {right.name:<18} {right.outcome:<14} {right.permission:<26} {purpose}".rstrip()
        # Skip why an optional permission is refused, but show what to grant.
        if right.error and not (right.outcome is State.REFUSED and not right.needed):
            yield f"       {right.error}"
        if right.hint and right.outcome in _BAD:
            yield f"       {right.hint}" if right.needed else f"       to use it: {right.hint}"


def _mark(right: Right) -> str:
    if right.outcome in _GOOD:
        return click.style("ok ", fg="green")
    if right.missing and right.outcome in _BAD:
        return click.style("NO ", fg="red", bold=True)
    return " - "


def _verdict(report: Report) -> str:
    if report.ready:
        return click.style("ready: events can be backed up", fg="green", bold=True)
    missing = [f"{right.name} {right.outcome}" for right in report.rights if right.missing and right.outcome is not State.NOT_TRIED]
    again = "; try again" if report.may_pass else ""
    return click.style(f"not ready: {', '.join(missing)}{again} [NotReady]", fg="red", bold=True)
