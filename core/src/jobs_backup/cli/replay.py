"""`jobs-backup replay`: events back from the bucket, as NDJSON."""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NoReturn

import click
import msgspec

from jobs_backup.cli.options import INCOMPLETE, MISUSED, check_text, say, with_environment
from jobs_backup.cli.process import read_settings, stopping, summarize_failures
from jobs_backup.cli.replay_output import OutputFile, Stdout
from jobs_backup.cli.streams import can_output, print_json
from jobs_backup.core_settings import CoreSettings
from jobs_backup.destination import Destination
from jobs_backup.encoding import microseconds
from jobs_backup.errors import ConfigurationError, JobsBackupError
from jobs_backup.layout import clean_prefix
from jobs_backup.logs import printable
from jobs_backup.model import Kind
from jobs_backup.replay import Found, Query, Replay, Selection, elsewhere, known, listed, read_cursor, split_cursor, write_cursor
from jobs_backup.values import Duration

_REPORTED: Final = 20


def _time(option: str, text: str | None) -> int | None:
    """Microseconds since 1970."""
    if text is None:
        return None
    if text[-1:].isalpha() and not text.endswith("Z"):  # without a unit it may be meant as a date, or as seconds since 1970
        with suppress(ValueError):
            return int((time.time() - Duration.parse(text)) * 1_000_000)
    try:
        when = datetime.fromisoformat(text)
        return microseconds(when if when.tzinfo else when.replace(tzinfo=UTC))
    except ValueError:
        raise ConfigurationError(
            f"{option} {text!r} is no time", hint="write 2026-11-24, 2026-11-24T09:30:00Z, or 2h for two hours ago"
        ) from None


@click.command()
@click.option("--since", help="The first time that is wanted: 2026-11-24, 2026-11-24T09:30:00Z (UTC), or 2h ago.")
@click.option("--until", help="The first time behind those that are wanted.")
@click.option("--source-id", help="Of this source alone.")
@click.option("--workspace-id", help="Of this workspace alone.")
@click.option(
    "--kind", type=click.Choice([kind.value for kind in Kind]), default="raw", show_default=True, help="Events, or failures."
)
@click.option("--limit", type=click.IntRange(min=1), help="End after so many events.")
@click.option("--payload-only", is_flag=True, help="Only the payloads, byte for byte as they were recorded.")
@click.option("--list", "lists", is_flag=True, help="Find the objects by listing the bucket instead of in the spool's catalog.")
@click.option("--wrapped-only", is_flag=True, help="Nothing of objects that a wrapper of JOBS_BACKUP_WRAPPERS has not made.")
@click.option(
    "--after", default="", help="Resume after this cursor, which an earlier run of the same selection printed.", metavar="CURSOR"
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="File to write. It gets its name once complete; the same command resumes it.",
)
@click.option("--dry-run", is_flag=True, help="Only tell how many objects and bytes there are.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON; with --dry-run or --output.")
@with_environment
def replay(
    since: str | None,
    until: str | None,
    source_id: str | None,
    workspace_id: str | None,
    kind: str,
    limit: int | None,
    payload_only: bool,
    lists: bool,
    wrapped_only: bool,
    after: str,
    output: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Read events (or failures) back from the bucket, as NDJSON on standard output.

    Objects come in the order of their first events (with --list those of one second in that of their keys), lines as they were
    recorded. Each object is verified before any of it is
    given; one that is damaged or missing is named, and the rest goes on (exit code 1). Needs the right to read:
    `jobs-backup policy --with-replay`.

    \b
    Example:
      jobs-backup replay --source-id web --since 2h --dry-run --env-file docker.env
    """
    for option, text in (("--source-id", source_id), ("--workspace-id", workspace_id), ("--after", after)):
        check_text(option, text or "")
    _check_output(as_json=as_json, to_stdout=not (dry_run or output))
    summarize_failures()
    settings = read_settings()
    query = Query(
        kind=Kind(kind),
        since=_time("--since", since),
        until=_time("--until", until),
        source_id=source_id,
        workspace_id=workspace_id,
    )
    began = time.monotonic()
    problem: JobsBackupError | None = None
    with stopping() as stop:
        destination = Destination.from_settings(settings, os.environ, stop=stop)
        if wrapped_only and not destination.wrappers.applied:
            raise ConfigurationError("--wrapped-only, and JOBS_BACKUP_WRAPPERS names none that makes objects", hint="name it there")
        place = clean_prefix(settings.prefix) if lists else None
        chosen = [destination.location, place, kind, since, until, source_id, workspace_id, lists, wrapped_only]
        selection = msgspec.json.encode(chosen)
        begin, query = read_cursor(after, selection, query) if after else ("", query)
        asked = msgspec.json.encode([*chosen, payload_only, limit, after]).decode()
        target = OutputFile(output, asked, query) if output and not dry_run else Stdout(query, stop)
        begin, query = target.begin or begin, target.query
        found = Replay(
            destination,
            query,
            payload_only=payload_only,
            wrapped_only=wrapped_only,
            limit=limit,
            window=settings.upload_concurrency,
        )
        try:
            each = (_listed if lists else _known)(settings, destination, query, "" if dry_run else begin)
            objects = Selection(itertools.takewhile(lambda _: not stop.is_set(), each))
        except JobsBackupError as error:
            _stop(error)
        if dry_run:
            if stop.is_set():
                sys.exit(INCOMPLETE)
            _tell_totals(objects, destination.location, as_json=as_json)
            return
        begin, query, late = _resume(objects, target, found, begin, query, lists=lists)
        try:
            found.run(objects, target.write, stop, lambda: target.reached(found), begin)
        except JobsBackupError as error:
            problem = error
        objects.close()
    complete = found.finished and problem is None and not found.damaged and not late
    try:
        (target.finish if complete else target.leave)()
    except JobsBackupError as error:
        problem, complete = problem or error, False
    seconds = time.monotonic() - began
    cursor = write_cursor(found.cursor, selection, query) if found.cursor else ""
    if as_json:
        _tell_json(found, cursor, seconds, complete=complete)
    _report(found, cursor, destination.location, seconds, problem, target.part, late)
    if problem is not None:
        sys.exit(INCOMPLETE if problem.retryable else MISUSED)
    if found.damaged or stop.is_set() or late:
        sys.exit(INCOMPLETE)


def _resume(
    objects: Selection, target: OutputFile | Stdout, found: Replay, begin: str, query: Query, *, lists: bool
) -> tuple[str, Query, str]:
    """Where to begin, the query, and what this run cannot give, since it was stored after an earlier one had passed its place."""
    late = _late(objects, begin, query, lists=lists)
    if late and target.restart():
        say(f"{target.part} is written anew: {late}")
        begin, late = "", ""
    target.query = msgspec.structs.replace(query, looked_at=None if lists else objects.last_stored())
    target.restore(found)
    return begin, target.query, late


def _late(objects: Selection, begin: str, query: Query, *, lists: bool) -> str:
    """What was stored since the cursor was written, and belongs before it; empty if that is nothing."""
    if lists and begin:
        say("--list cannot tell objects that were stored since with events from before the cursor: they are not given")
    if lists or query.looked_at is None:
        return ""
    count, first, last = objects.stored_late(split_cursor(begin)[0], query.looked_at)
    if not count:
        return ""
    times = " to ".join(datetime.fromtimestamp(at / 1e6, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") for at in (first, last))
    return f"{count:,} objects were stored since the cursor was written, with events from before it ({times})"


def _check_output(*, as_json: bool, to_stdout: bool) -> None:
    if as_json and to_stdout:
        raise ConfigurationError("--json prints to standard output, as the events do", hint="give --dry-run or --output, too")
    if to_stdout and not can_output():
        raise ConfigurationError("events go to standard output, which is closed", hint="open it, or give --output")


def _listed(settings: CoreSettings, destination: Destination, query: Query, begin: str) -> Iterator[Found]:
    return listed(destination, clean_prefix(settings.prefix), query, begin)


def _known(settings: CoreSettings, destination: Destination, query: Query, begin: str) -> Iterator[Found]:
    if others := elsewhere(settings.spool_path, destination.location, query):
        say(f"{others:,} objects are left out that stand in other buckets")
    return known(settings.spool_path, destination.location, query, begin)


def _stop(error: JobsBackupError) -> NoReturn:
    say(error.one_line(), error.code)
    sys.exit(INCOMPLETE if error.retryable else MISUSED)


def _tell_totals(selection: Selection, location: str, *, as_json: bool) -> None:
    objects, size, events = selection.totals()
    if as_json:
        print_json({"objects": objects, "bytes": size, "events": events})
    else:
        known_events = "" if events is None else f", with up to {events:,} events"
        click.echo(printable(f"{objects:,} objects ({size:,} bytes{known_events}) in {location}"))


def _tell_json(found: Replay, cursor: str, seconds: float, *, complete: bool) -> None:
    told = {
        "complete": complete,
        "events": found.events,
        "objects": found.objects,
        "bytes": found.bytes,
        "after": cursor,
        "damaged": [one.key for one in found.damaged],
        "unwrapped": found.unwrapped,
        "seconds": round(seconds, 3),
    }
    print_json(told)


def _report(
    found: Replay, cursor: str, location: str, seconds: float, error: JobsBackupError | None, part: Path | None, late: str
) -> None:
    for one in found.damaged[:_REPORTED]:
        say(one.error.one_line(), "DamagedObject")
    if len(found.damaged) > _REPORTED:
        say(f"and {len(found.damaged) - _REPORTED:,} more objects", "DamagedObject")
    if error is not None:
        say(error.one_line(), error.code)
    for format_, count in found.unwrapped.items():
        say(f"{count:,} of the objects have no .{format_}: they were recorded without it, or somebody else has written them")
    say(f"{found.events:,} events of {found.objects:,} objects ({found.bytes:,} bytes) from {location}; {seconds:.1f} s")
    if late:
        say(f"{late}: replay these times in a run of their own", "Incomplete")
    if part is not None and found.damaged:
        lacks = f"{part} lacks {len(found.damaged):,} objects"
        say(f"{lacks}: repair them and run the same command again, or use the file as it is", "Incomplete")
    elif part is not None and not found.finished:
        say("this was not all: the same command resumes it", "Incomplete")
    elif (found.limited or not found.finished) and cursor:
        say(f"this was not all: resume with the same options and --after '{cursor}'", "Incomplete")
