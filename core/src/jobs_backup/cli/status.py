"""`jobs-backup status`: what waits in the spool, and why."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Final

import click

from jobs_backup.cli.options import with_environment
from jobs_backup.cli.streams import print_json
from jobs_backup.core_settings import CoreSettings
from jobs_backup.logs import printable
from jobs_backup.spool.status import DestinationStatus, ProcessStatus, Status, StreamStatus, read_status
from jobs_backup.values import Duration

_HEADINGS: Final = ("kind", "workspace", "source", "waiting", "bytes", "objects", "sending", "not sealed", "oldest")

_UPLOAD_FREQUENCY: Final = 300.0
_TROUBLE: Final = ("  paused", "  last error", "damaged")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@with_environment
def status(as_json: bool) -> None:
    """Tell what waits in the spool, for which destination, since when, and why.

    It reads beside the processes that use the spool, and needs no setting but JOBS_BACKUP_SPOOL_DIR.

    \b
    Example:
      jobs-backup status --env-file docker.env
    """
    found = read_status(CoreSettings.find_spool(os.environ), upload_frequency=_upload_frequency())
    if as_json:
        print_json(found)
        return
    for line in _lines(found):
        plain = printable(line)
        # Where it is, in bold; what hinders, in red. Pipes and files get neither.
        colour = "red" if line.startswith(_TROUBLE) else None
        click.echo(click.style(plain, fg=colour, bold=not line.startswith(" ")) if line else "")


def _upload_frequency() -> float:
    """It needs no settings: what is wrong with this one is for those to tell who record."""
    try:
        return Duration.parse(os.environ["JOBS_BACKUP_UPLOAD_FREQUENCY"])
    except (KeyError, ValueError):
        return _UPLOAD_FREQUENCY


def _lines(found: Status) -> Iterator[str]:
    free = f"{_bytes(found.free)} free on its disk"
    if found.events:
        waiting = f"{found.events:,} events wait, {_bytes(found.bytes)}, the oldest for {_time(found.oldest)}"
    else:
        waiting = "nothing waits"
    behind = f"; behind: {found.behind}" if found.behind else ""
    yield f"{found.directory}: {waiting}; {free}{behind}"
    for destination in found.destinations:
        yield ""
        yield from _destination(destination)
    if found.processes:
        yield ""
        yield from map(_process, found.processes)
    if found.unreadable:
        yield ""
        yield "recorded by processes that have died, and not taken over yet [Unreadable]:"
        yield from (f"  {one.file}: {one.error}" for one in found.unreadable)
    if found.quarantine:
        yield ""
        yield "damaged, set aside; remove the files when you have seen to them [Quarantine]:"
        for one in found.quarantine:
            events = f"{one.events:,} events" if one.events else "events"
            yield f"  {events} of {one.kind} {one.source_id} in {one.file}: {one.error}"


def _destination(one: DestinationStatus) -> Iterator[str]:
    yield one.location
    if one.error:
        paused = f"paused, next try in {_time(one.paused)}" if one.paused else "last error"
        yield f"  {paused}: {one.error}" + (f": {one.hint}" if one.hint else "")
    if one.streams:
        yield from (f"  {line}" for line in _table(one.streams))
    if one.uploads:
        yield f"  {one.uploads:,} multipart uploads are under way"
    if one.deletes:
        paused = f", next try in {_time(one.deletes_paused)}" if one.deletes_paused else ""
        why = f": {one.delete_error}: {one.delete_hint}" if one.delete_error else ""
        yield f"  {one.deletes:,} objects are still to be deleted{paused}{why}"
    if one.aborts:
        yield f"  {one.aborts:,} multipart uploads are still to be aborted" + (f": {one.abort_error}" if one.abort_error else "")


def _table(streams: Sequence[StreamStatus]) -> Iterator[str]:
    from rich.console import Console  # noqa: PLC0415 - slow to import, and mostly nothing waits
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in _HEADINGS:
        table.add_column(heading, justify="left" if heading in _HEADINGS[:3] else "right", overflow="fold")
    for stream in streams:
        counts = (stream.events, stream.bytes, stream.objects, stream.sending, stream.open_events)
        names = (stream.kind, stream.workspace_id or "-", stream.source_id)
        table.add_row(*map(_plain, names), *(f"{count:,}" for count in counts), _time(stream.oldest))
    console = Console(width=200, color_system=None)
    with console.capture() as captured:
        console.print(table)
    yield from (line.rstrip() for line in captured.get().splitlines())


def _process(one: ProcessStatus) -> str:
    what = "records and sends" if one.sends else "records"
    if one.alive:
        return f"process {one.pid} {what}, since {_time(one.seconds)}"
    return f"process {one.pid} has died; the next process that sends takes its place"


def _plain(text: str) -> str:
    return printable(text).replace("[", r"\[")


def _bytes(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _time(seconds: float) -> str:
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86_400:.0f} days"
