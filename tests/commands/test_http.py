"""HTTP: where the network splits a request does not change its result, and no part of it is taken for another request."""

from __future__ import annotations

import asyncio
import os
import random
import re
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import pytest
from buckets import events, file_environment
from http_corpus import CORPUS, H2C, LARGE, LAST, LENGTH, LINE, WEBSOCKET, Case, Outcome, post, replay
from serving import TOKEN, serve
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from jobs_backup import Backup
from jobs_backup.backup.backup import session_of
from jobs_backup.backup.session import Session
from jobs_backup.inputs.http.app import App
from jobs_backup.inputs.http.auth import Access
from jobs_backup.model import Kind
from jobs_backup.settings.server import ServerSettings

EVERYWHERE: Final = os.environ.get("JOBS_BACKUP_TEST_HTTP") == "all"
"""Cut every request of the corpus at every byte; otherwise at a sample that differs each day."""


class Replayed(NamedTuple):
    """The application and its event loop."""

    runner: asyncio.Runner
    app: ASGIApp
    session: Session

    def __call__(self, pieces: Sequence[bytes], protocol: type[asyncio.Protocol] | None = None) -> tuple[Outcome, int]:
        """The responses, and the number of recorded events."""
        before = self.session.spool.recorded.events[Kind.RAW]
        outcome = self.runner.run(replay(self.app, pieces, protocol))
        return outcome, self.session.spool.recorded.events[Kind.RAW] - before


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replayed]:
    directory = tmp_path_factory.mktemp("http")
    env = {**file_environment(directory), "JOBS_BACKUP_SERVER_TOKEN": TOKEN}
    settings = ServerSettings.from_environment(env)
    with asyncio.Runner() as runner, Backup.from_env(env) as backup:
        app = App(session_of(backup), settings, Access(settings), is_stopping=lambda: False)
        yield Replayed(runner, runner.run(app.__aenter__()), session_of(backup))
        runner.run(app.__aexit__())
        recorded = session_of(backup).spool.recorded.events[Kind.RAW]
    assert [event["messageId"] for event in events(directory)] == ["m"] * recorded
    assert {path.relative_to(directory / "bucket").parts[0] for path in directory.rglob("*.json.gz")} <= {"web"}


def cuts(sent: bytes, *, most: int) -> list[int]:
    """Places to split; all of them, or some that include the ends of lines."""
    places = range(1, len(sent))
    if EVERYWHERE:
        return list(places)
    rng = random.Random(time.strftime("%Y-%m-%d"))
    ends = [at + offset for at in range(len(sent)) if sent[at : at + 1] == b"\n" for offset in (0, 1)]
    return sorted({*rng.sample(places, min(most, len(places))), *rng.sample(ends, min(most, len(ends)))} - {0, len(sent)})


@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", CORPUS, ids=lambda case: case.name)
def test_a_request_is_the_same_wherever_it_is_cut(replayed: Replayed, case: Case) -> None:
    whole, recorded = replayed([case.sent])
    assert (whole.statuses, recorded) == (case.statuses, case.events)
    for at in cuts(case.sent, most=8):
        assert replayed([case.sent[:at], case.sent[at:]]) == (whole, recorded), at
    assert replayed([case.sent[at : at + 1] for at in range(len(case.sent))]) == (whole, recorded), "byte by byte"


@pytest.mark.parametrize("case", [*CORPUS, *LARGE], ids=lambda case: case.name)
def test_a_refusal_is_json_and_nothing_is_a_redirect(replayed: Replayed, case: Case) -> None:
    outcome, _ = replayed([case.sent])
    answers = re.split(rb"(?=HTTP/1\.1 )", outcome.sent)[1:]
    for status, answer in zip(case.statuses, answers, strict=True):
        head, _, body = answer.partition(b"\r\n\r\n")
        assert not 300 <= status < 400
        if status >= 400:
            assert b"content-type: application/json" in head.lower(), answer
            assert b"HEAD" in case.sent or body.startswith(b'{"error":{"code":"'), answer


@pytest.mark.parametrize("case", LARGE, ids=lambda case: case.name)
def test_what_is_too_large_is_refused_wherever_it_is_cut(replayed: Replayed, case: Case) -> None:
    for at in (0, *random.Random(1).sample(range(1, len(case.sent)), 5)):
        outcome, recorded = replayed([piece for piece in (case.sent[:at], case.sent[at:]) if piece])
        assert (outcome.statuses, recorded) == (case.statuses, case.events)


UNLIKE: Final = {"HTTP/1.0, kept"}


@pytest.mark.parametrize("case", [one for one in CORPUS if 400 not in one.statuses], ids=lambda case: case.name)
def test_a_second_parser_reads_what_is_taken_in_the_same_way(replayed: Replayed, case: Case) -> None:
    """h11: slower, and in use for ten years."""
    if case.name in UNLIKE:
        pytest.skip("h11 closes the connection")
    outcome, recorded = replayed([case.sent], H11Protocol)
    assert (outcome.statuses, recorded) == (case.statuses, case.events)


class TestProcess:
    """A sample, run against the command itself through real sockets."""

    @pytest.mark.parametrize("offer", [H2C, WEBSOCKET], ids=["h2c", "websocket"])
    def test_a_field_is_never_a_request(self, tmp_path: Path, offer: bytes) -> None:
        first = post(body=b'{"messageId":"a"}')
        field = b"X-Note: POST /v1/events?source_id=evil HTTP/1.1\r\n"
        second = post(field + offer + LENGTH, body=b'{"messageId":"b"}') + LAST
        at = second.index(b"POST", 10)
        with serve(file_environment(tmp_path)) as sidecar:
            for pieces in (
                [first + second],
                [first[:-3], first[-3:] + second[:at], second[at:]],
                [first[:-3], first[-3:] + second[:42], second[42:]],
                [first + second[: -len(LAST) - 5], second[-len(LAST) - 5 :]],
            ):
                answered = _exchange(sidecar.url, pieces)
                assert answered.count(b"HTTP/1.1 200 OK") == 3, answered
            sidecar.end()
        assert sorted(event["messageId"] for event in events(tmp_path)) == ["a"] * 4 + ["b"] * 4
        assert [path.relative_to(tmp_path / "bucket").parts[0] for path in tmp_path.rglob("*.json.gz")] == ["web"]

    def test_corpus(self, tmp_path: Path) -> None:
        cases = random.Random(time.strftime("%Y-%m-%d")).sample(CORPUS, len(CORPUS) if EVERYWHERE else 12)
        with serve(file_environment(tmp_path)) as sidecar:
            for case in cases:
                at = random.Random(case.name).randrange(1, len(case.sent))
                for pieces in ([case.sent], [case.sent[:at], case.sent[at:]]):
                    answered = _exchange(sidecar.url, pieces)
                    assert answered.count(b"HTTP/1.1 ") == len(case.statuses), (case.name, answered)
                    assert all(b"HTTP/1.1 %d" % status in answered for status in case.statuses), (case.name, answered)
            _, stderr = sidecar.end()
        assert len(events(tmp_path)) == 2 * sum(case.events for case in cases)
        assert "rror" not in stderr


def _exchange(url: str, pieces: list[bytes]) -> bytes:
    """All responses until the server closes the connection, or sends no more."""
    place = urlsplit(url)
    with socket.create_connection((place.hostname, place.port), timeout=120) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        answered = b""
        try:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(0.03)
            connection.settimeout(1)
            while data := connection.recv(1 << 16):
                answered += data
        except OSError:
            pass  # the server closed it, or waits for the next request
        return answered


def test_the_line_of_the_corpus_has_its_length() -> None:
    assert b"Content-Length: %d\r\n" % len(LINE) == LENGTH
