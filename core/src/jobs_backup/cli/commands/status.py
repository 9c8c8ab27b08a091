"""`jobs-backup status`: what waits in the spool, and why."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, TypeVar

import click

from jobs_backup.cli.options import echo_message, warn_of_misspelt_settings, with_environment
from jobs_backup.cli.streams import is_reader_gone, print_json
from jobs_backup.errors import SpoolError
from jobs_backup.settings.core import CoreSettings, SpoolPlace
from jobs_backup.settings.values import Duration, Size
from jobs_backup.spool.engines import read_status
from jobs_backup.spool.status import DatabaseStatus, Limits, ProcessStatus, Status, StoreStatus, StreamStatus
from jobs_backup.util.logs import plural, printable

_HEADINGS: Final = ("kind", "workspace", "source", "waiting", "bytes", "objects", "uploading", "not sealed", "oldest")

_TROUBLE: Final = ("  paused", "  last error", "damaged", "full")
_WATCH_SECONDS: Final = 2.0
_HEALTHY: Final = 0
_BEHIND: Final = 1
_UNUSABLE: Final = 2
T = TypeVar("T")


def _pause(_context: click.Context, option: click.Parameter, seconds: float | None) -> float | None:
    if seconds is not None and math.isnan(seconds):  # no range rejects it
        raise click.BadParameter("'nan' is not a number of seconds.", param=option)
    return seconds


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--exit-code",
    is_flag=True,
    help="Exit with 0 if healthy, 1 if behind or paused, 2 if the spool cannot be read or cannot record.",
)
@click.option(
    "--watch",
    type=click.FloatRange(min=0.1, max=86400),
    callback=_pause,
    is_flag=False,
    flag_value=_WATCH_SECONDS,
    metavar="[SECONDS]",
    help="Repeat every 2 seconds, or every SECONDS, until stopped; with --json, one line each time.",
)
@with_environment
def status(as_json: bool, exit_code: bool, watch: float | None) -> None:
    """Show what waits in the spool, for which store, since when, and why.

    It reads beside the processes that use the spool, and needs no setting but JOBS_BACKUP_SPOOL_DIR or JOBS_BACKUP_SPOOL.

    \b
    Example:
      jobs-backup status --env-file docker.env
    """
    warn_of_misspelt_settings()
    place, rejects = CoreSettings.find_spool(os.environ)
    if watch is None:
        health = _show(place, rejects, as_json=as_json, exit_code=exit_code)
    else:
        from jobs_backup.cli.process import stopping  # slow to import

        with stopping() as stop:
            while True:
                if sys.stdout.isatty() and not as_json:
                    click.clear()
                health = _show(place, rejects, as_json=as_json, exit_code=True)
                sys.stdout.flush()
                if is_reader_gone() or stop.wait(watch):
                    break
                if not as_json:
                    click.echo()
    sys.exit(health if exit_code else 0)


def _show(place: SpoolPlace, rejects: Path, *, as_json: bool, exit_code: bool) -> int:
    """Print the status once. Returns the exit code of its health.

    Raises:
        SpoolError: the spool cannot be read; with `exit_code` this is printed instead.
    """
    try:
        found = read_status(place, _limits(), rejects)
    except SpoolError as error:
        if not exit_code:
            raise
        echo_message(error.one_line(), error.code)
        return _UNUSABLE
    if as_json:
        print_json(found)
    else:
        for line in _lines(found):
            plain = printable(line)
            # Location in bold, problems in red. Pipes and files get neither.
            colour = "red" if line.startswith(_TROUBLE) else None
            click.echo(click.style(plain, fg=colour, bold=not line.startswith(" ")) if line else "")
    if found.full:
        return _UNUSABLE
    return _BEHIND if found.behind or any(one.paused for one in found.stores) else _HEALTHY


def _limits() -> Limits:
    """Limits from the environment, with defaults for invalid settings, which recording commands report."""
    return Limits(
        upload_frequency=_setting("JOBS_BACKUP_UPLOAD_FREQUENCY", Duration.parse, Duration(300)),
        min_free=_setting("JOBS_BACKUP_SPOOL_MIN_FREE", Size.parse, Size.parse("128MiB")),
        max_bytes=_setting("JOBS_BACKUP_SPOOL_MAX_BYTES", Size.parse, None),
    )


def _setting(name: str, parse: Callable[[str], T], default: T) -> T:
    try:
        return parse(os.environ[name])
    except (KeyError, ValueError):
        return default


def _lines(found: Status) -> Iterator[str]:
    free = "" if found.free is None else f"; {_bytes(found.free)} free on its disk"
    if found.events:
        wait = "waits" if found.events == 1 else "wait"
        oldest = f"{_bytes(found.bytes)}, the oldest for {_time(found.oldest)}"
        waiting = f"{plural(found.events, 'event')} {wait}, {oldest}"
    else:
        waiting = "nothing waits"
    behind = f"; behind: {found.behind}" if found.behind else ""
    yield f"{found.directory}: {waiting}{free}{behind}"
    if found.full:
        yield f"full: nothing can be recorded: {found.full} [SpoolFull]"
    for store in found.stores:
        yield ""
        yield from _store(store)
    if found.processes:
        yield ""
        yield from map(_process, found.processes)
    if found.database is not None:
        yield ""
        yield _database(found.database)
    if found.unreadable:
        yield ""
        yield "recorded by dead processes, and not taken over yet [Unreadable]:"
        yield from (f"  {one.file}: {one.error}" for one in found.unreadable)
    if found.quarantine:
        yield ""
        yield "damaged and quarantined; remove the files once you have dealt with them [Quarantine]:"
        for one in found.quarantine:
            events = plural(one.events, "event") if one.events else "events"
            yield f"  {events} of {one.kind} {one.source_id} in {one.file}: {one.error}"
    if found.rejected:
        yield ""
        yield "rejected lines; correct them, run them again, and remove the files [Rejected]:"
        yield from (f"  {one.file}: {_bytes(one.bytes)}" for one in found.rejected)


def _store(one: StoreStatus) -> Iterator[str]:
    yield one.location
    if one.error:
        paused = f"paused, next try in {_time(one.paused)}" if one.paused else "last error"
        yield f"  {paused}: {one.error}" + (f": {one.hint}" if one.hint else "")
    if one.streams:
        yield from (f"  {line}" for line in _table(one.streams))
    if one.uploads:
        yield f"  {plural(one.uploads, 'multipart upload')} under way"
    if one.deletes:
        paused = f", next try in {_time(one.deletes_paused)}" if one.deletes_paused else ""
        why = f": {one.delete_error}: {one.delete_hint}" if one.delete_error else ""
        yield f"  {plural(one.deletes, 'object')} still to be deleted{paused}{why}"
    if one.aborts:
        yield f"  {plural(one.aborts, 'multipart upload')} still to be aborted" + (
            f": {one.abort_error}" if one.abort_error else ""
        )


def _table(streams: Sequence[StreamStatus]) -> Iterator[str]:
    from rich.console import Console  # slow to import, and mostly nothing waits
    from rich.table import Table

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
    what = "records and uploads" if one.sends else "records"
    where = f" on {one.host}" if one.host else ""
    if one.alive:
        lease = "" if one.lease is None else f"; its lease ends in {_time(one.lease)} unless it is renewed"
        return f"process {one.pid}{where} {what}, since {_time(one.seconds)}{lease}"
    return f"process {one.pid}{where} has died; the next process that sends takes its place"


def _database(one: DatabaseStatus) -> str:
    oldest = f", the oldest full one {_time(one.oldest_segment)} old" if one.oldest_segment else ""
    tables = f"{plural(one.segments, 'table')} with {_bytes(one.segment_bytes)} on its disk{oldest}"
    return f"server: {tables}; the oldest snapshot in use is {plural(one.xmin_age, 'transaction')} old"


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
