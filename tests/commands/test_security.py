"""Secrets that nobody may see, files that no other user may read, and places that must not be written: modes, links, TLS."""

from __future__ import annotations

import json
import logging
import os
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from buckets import FAST_RETRY, events, file_environment, objects
from click.testing import CliRunner
from commands import run, start
from profiles import CAMPAIGN
from s3_client import CREATED, KEY_ID, SECRET, STORED, TOKEN, UPLOAD_ID, refusal, scripted, store_environment
from servers import certificate
from spools import archiver_of

from jobs_backup import Backup, Event, InvalidEvent, StorePaused
from jobs_backup.backup.backup import session_of
from jobs_backup.checksum import crc32c
from jobs_backup.cli import cli
from jobs_backup.errors import ConfigurationError, JobsBackupError, UploadGone
from jobs_backup.model import BytesBody, Outcome, Upload
from jobs_backup.settings import redacted
from jobs_backup.store.file_provider import FileProvider
from jobs_backup.testing.fault_proxy import ALWAYS, Answer, Cut, Fault, FaultProxy
from jobs_backup.util.logs import printable
from jobs_backup_s3.errors import Call
from jobs_backup_s3.provider import S3Provider
from jobs_backup_s3.settings import S3Settings

# Modes


@pytest.fixture
def open_umask() -> Iterator[None]:
    """With this umask, every file without an explicit mode is readable and writable by everyone."""
    before = os.umask(0)
    yield
    os.umask(before)


def too_open(directory: Path) -> dict[str, str]:
    """The permissions of other users than the owner."""
    found = {path: stat.S_IMODE(path.lstat().st_mode) for path in [directory, *directory.rglob("*")]}
    return {str(path): oct(mode) for path, mode in found.items() if mode != (0o700 if path.is_dir() else 0o600)}


@pytest.mark.usefixtures("open_umask")
def test_whatever_the_umask_the_spool_is_its_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = file_environment(tmp_path)
    spool = tmp_path / "spool"
    with Backup.from_env(environment) as backup:
        backup.record({"a": 1}, source_id="web")
        names = {path.name for path in spool.rglob("*")}
        assert {"catalog.db", "catalog.db-wal", "catalog.db-shm", "blobs", "locks", "rejects"} <= names
        assert any(name.endswith(".db-wal") and name != "catalog.db-wal" for name in names)
        assert too_open(spool) == {}
        backup.flush(timeout=120)
        assert too_open(spool) == {}
    for name, text in environment.items():
        monkeypatch.setenv(name, text)
    (tmp_path / "in").write_text("no event\n")
    result = CliRunner().invoke(cli, ["run", str(tmp_path / "in"), "--source-id", "web"])
    assert result.exit_code == 3
    assert [path.parent.name for path in spool.rglob("*.ndjson")] == ["rejects"]
    assert too_open(spool) == {}


@pytest.mark.usefixtures("open_umask")
def test_whatever_the_umask_objects_are_their_owners_alone(tmp_path: Path) -> None:
    provider = directory_provider(tmp_path)
    write(provider, "web/gw/one")
    upload = provider.create_multipart("app/gw/two")
    provider.write_part(upload, 1, BytesBody(b"two"))
    bucket = tmp_path / "bucket"
    assert too_open(bucket).keys() == {str(bucket)}  # which we did not create
    assert len(list(bucket.rglob("*"))) == 6
    provider.complete_multipart(upload, [provider.write_part(upload, 1, BytesBody(b"two"))], 3, crc32c(b"two"), True)
    assert too_open(bucket).keys() == {str(bucket)}


# Canaries

PAYLOAD: Final = "canary-of-the-payload"
USER: Final = "canary-of-the-user"
PASSWORD: Final = "canary-of-the-proxy"
SOME_FAULTS: Final = ("create refused", "part refused", "part redirected", "complete no xml")
KEYS: Final = f"{SECRET} {TOKEN} {TOKEN!r}"
ECHO: Final = f"{KEYS} {UPLOAD_ID} canary%2Fupload%2Bid%3D%3D canary%2Fupload%2Bid== {UPLOAD_ID!r}"
SDK: Final = ("boto3", "botocore", "urllib3", "s3transfer")
COMPLETED: Final = Answer(200, b'<CompleteMultipartUploadResult><ETag>"1"</ETag></CompleteMultipartUploadResult>')


def behave(server: FaultProxy) -> None:
    """Answer as a store does, unless an earlier rule applies."""
    server.fail(CREATED, method="POST", target="uploads", times=ALWAYS)
    server.fail(COMPLETED, method="POST", target="uploadId", times=ALWAYS)
    server.fail(STORED, method="PUT", times=ALWAYS)
    server.fail(Answer(204), method="DELETE", times=ALWAYS)


class Heard:
    """Everything logged by any library at every level, and all other output.

    With one exception: at DEBUG the SDK logs whole requests and responses, with the session token and the ids of uploads in them.
    Its own documentation warns of that; an application that turns it on gets it, and the command never does.
    """

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog
        self.said: list[str] = []
        for name in ("", "jobs_backup", "jobs_backup_s3", *(f"jobs_backup.{one}" for one in ("retry", "archiver", "multipart"))):
            caplog.set_level(logging.DEBUG, name or None)

    def raised(self, error: BaseException | None) -> None:
        """An error, with everything that its report may show, including chained errors."""
        while error is not None:
            self.said += [repr(error), str(error), *traceback.format_exception(error)]
            if isinstance(error, JobsBackupError):
                self.said += [error.one_line(), error.hint, repr(vars(error))]
            error = error.__cause__

    def check(self) -> None:
        """Check for canaries in everything; in the SDK's DEBUG log, only for payloads."""
        form = logging.Formatter("%(name)s %(levelname)s %(message)s")
        assert self._caplog.records or self.said
        for record in self._caplog.records:
            text = form.format(record)
            is_chatter = record.name.split(".")[0] in SDK and record.levelno < logging.INFO
            for canary in (PAYLOAD, USER) if is_chatter else CANARIES:
                assert canary not in text, record
        everything = "\n".join(self.said)
        assert [canary for canary in CANARIES if canary in everything] == []


CANARIES: Final = (SECRET, TOKEN, UPLOAD_ID, "canary%2F", "canary/upload", "canary%2B", "canary+", PAYLOAD, USER, PASSWORD)


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture) -> Heard:
    return Heard(caplog)


def use(backup: Backup, heard: Heard) -> None:
    """Record, and have it uploaded or refused; collect all output meanwhile."""
    job = backup.record({"userId": USER, "text": PAYLOAD}, source_id="web")
    event = Event(payload={"text": PAYLOAD}, source_id="web", user_id=USER)
    backup.record_many([event])
    for bad in (
        f'{{"text":"{PAYLOAD}}}',
        f'{{"{PAYLOAD}":"\udcff"}}',
        [PAYLOAD],
        {"a": PAYLOAD + "\ud800"},
        f'{{"{PAYLOAD}":1}} {USER}',
    ):
        try:
            backup.record(bad, source_id="web")  # type: ignore[arg-type]
        except InvalidEvent as error:
            heard.raised(error)
    try:
        backup.record({}, source_id="web", user_id=f"{USER}\ud800")
    except InvalidEvent as error:
        heard.raised(error)
    try:
        backup.flush(timeout=120)
    except (StorePaused, TimeoutError) as error:
        heard.raised(error)
        heard.raised(getattr(error, "cause", None))
    for refused in archiver_of(backup).abort_abandoned():
        heard.raised(refused)
    store = archiver_of(backup)._store
    spool = session_of(backup).spool
    shown: list[object] = [
        backup, vars(backup), job, event, spool, vars(spool), archiver_of(backup), vars(archiver_of(backup)), store,
        vars(store), session_of(backup).location, spool.waiting(), spool.uploads.waiting(), spool.uploads.abandoned(),
        store.attempts,
        Upload(key="k", id=UPLOAD_ID),
    ]  # fmt: skip
    heard.said += [text for one in shown for text in (repr(one), str(one), f"{one}")]


FAULTS: Final[Mapping[str, tuple[str, str, Fault]]] = {
    "nothing": ("", "no such request", Cut()),
    "create refused": ("POST", "uploads", refusal(403, "AccessDenied", KEYS, CanonicalRequest=KEYS)),
    "create without id": ("POST", "uploads", Answer(200, b"<InitiateMultipartUploadResult/>")),
    "part refused": ("PUT", "partNumber", refusal(403, "SignatureDoesNotMatch", ECHO, StringToSign=ECHO, CanonicalRequest=ECHO)),
    "part failed": ("PUT", "partNumber", refusal(500, "InternalError", ECHO, UploadId=UPLOAD_ID)),
    "part unknown": ("PUT", "partNumber", refusal(404, "NoSuchUpload", ECHO, UploadId=UPLOAD_ID)),
    "part cut": ("PUT", "partNumber", Cut(after=10)),
    "part corrupted": ("PUT", "partNumber", refusal(400, "BadDigest", ECHO)),
    "part no answer": ("PUT", "partNumber", Answer(200, b"")),
    "part redirected": ("PUT", "partNumber", Answer(307, ECHO.encode(), {"Location": f"http://127.0.0.1:1/?uploadId={UPLOAD_ID}"})),
    "complete failed": ("POST", "uploadId", refusal(200, "InternalError", ECHO)),
    "complete no xml": ("POST", "uploadId", Answer(200, f"<html {ECHO}".encode())),
    "complete exists": ("POST", "uploadId", refusal(412, "PreconditionFailed", ECHO)),
}


@pytest.mark.parametrize("fault", FAULTS if CAMPAIGN else SOME_FAULTS)
def test_whatever_a_store_answers_nobody_sees_a_secret(tmp_path: Path, heard: Heard, fault: str) -> None:
    """At every log level, in errors and their causes, in tracebacks, reprs, and the status.

    Aborts are refused, too. Then the same spool meets a working store.
    """
    method, target, answer = FAULTS[fault]
    with FaultProxy() as server:
        server.fail(answer, method=method, target=target, times=ALWAYS)
        server.fail(refusal(403, "AccessDenied", ECHO), method="DELETE", times=ALWAYS)
        behave(server)
        with Backup.from_env(store_environment(tmp_path, server.url)) as backup:
            use(backup, heard)
        assert fault == "nothing" or [request for request in server.requests if request.fault is answer]
    with FaultProxy() as server:
        behave(server)
        try:
            with Backup.from_env(store_environment(tmp_path, server.url)) as backup:
                use(backup, heard)
        except JobsBackupError as error:
            heard.raised(error)
    heard.check()


def test_what_a_provider_did_not_foresee_shows_no_secret(tmp_path: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a bug in a plugin, whatever its text."""

    def fail(*_: object) -> None:
        try:
            raise ValueError(ECHO)
        except ValueError as error:
            raise RuntimeError(f"unforeseen: {ECHO} {TOKEN!r}") from error

    with FaultProxy() as server:
        behave(server)
        monkeypatch.setattr(S3Provider, "_put", fail)
        with Backup.from_env(store_environment(tmp_path, server.url)) as backup:
            use(backup, heard)
    assert any("unforeseen: ****" in text for text in heard.said)
    heard.check()


def test_settings_that_can_not_be_used_show_no_secret(tmp_path: Path, heard: Heard) -> None:
    """The HTTP library would reject a line break in a token, and show the whole header."""
    with FaultProxy() as server:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "JOBS_BACKUP_S3_PROXY"):
            for text in (f"{PAYLOAD}\n{SECRET}", f"{SECRET}\0", f"{SECRET}\udcff", f"http://{SECRET}\r\nX-Evil: {TOKEN}"):
                with pytest.raises(ConfigurationError, match=name) as caught:
                    Backup.from_env(store_environment(tmp_path, server.url, **{name: text}))
                heard.raised(caught.value)
        assert server.requests == []
    heard.check()


def test_an_sdk_that_refuses_a_header_shows_no_secret(heard: Heard) -> None:
    """Credentials may also come from outside our settings; their Python representations are hidden as well."""
    secret = f"{SECRET}\n\x07é"
    for shown in (secret, f"{secret!r}", f"{secret!a}", f"{secret.encode()!r}"):
        assert "canary" not in redacted(f"Invalid header value {shown}", [secret])


def test_a_broken_provider_shows_no_secret(tmp_path: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    def from_settings(environment: Mapping[str, str]) -> None:
        raise KeyError(environment["AWS_SECRET_ACCESS_KEY"])

    monkeypatch.setattr(S3Provider, "from_settings", from_settings)
    with pytest.raises(ConfigurationError, match=r"from_settings\(\) failed: KeyError at .*test_security\.py:\d+") as caught:
        Backup.from_env(store_environment(tmp_path, "http://127.0.0.1:1"))
    heard.raised(caught.value)
    heard.check()


def test_a_proxy_shows_no_password(tmp_path: Path, heard: Heard) -> None:
    with FaultProxy() as proxy:
        proxy.fail(refusal(502, "BadGateway", f"http://user:{PASSWORD}@127.0.0.1:{proxy.port} is broken"), times=1)
        proxy.fail(refusal(407, "", headers={"Proxy-Authenticate": f"Basic realm={PASSWORD}"}), times=ALWAYS)
        environment = store_environment(tmp_path, "http://store.invalid")
        environment["JOBS_BACKUP_S3_PROXY"] = f"http://user:{PASSWORD}@127.0.0.1:{proxy.port}"
        with Backup.from_env(environment) as backup:
            use(backup, heard)
        assert len(proxy.requests) > 1
    environment["JOBS_BACKUP_S3_PROXY"] = f"http://user:{PASSWORD}@127.0.0.1:1"
    with Backup.from_env(environment) as backup:
        use(backup, heard)
    heard.check()


@contextmanager
def raw_server(answer: bytes) -> Iterator[str]:
    """Answer every connection with these bytes; return its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return  # the test is over
                with client:
                    client.recv(1 << 20)
                    client.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_malformed_answer_shows_no_upload(heard: Heard, caplog: pytest.LogCaptureFixture) -> None:
    """The HTTP library's warning shows the whole URL, which contains the upload's id."""
    answer = b'HTTP/1.1 200 OK\r\nETag: "1"\r\nContent-Length: 0\r\nno header at all\r\n\r\n'
    with raw_server(answer) as url:
        scripted(url).part(Upload(key="key", id=UPLOAD_ID), [b"data"], 1)
    assert "Failed to parse headers (url=" in caplog.text
    assert "uploadId=****&partNumber=1" in caplog.text
    heard.check()


def test_a_damaged_spool_shows_no_payload(tmp_path: Path, heard: Heard) -> None:
    """The spool holds the payload uncompressed at first: whatever reads it may show it."""
    environment = file_environment(tmp_path, **FAST_RETRY)
    for statement in (
        "UPDATE chunks SET data=CAST(replace(CAST(data AS TEXT), 'canary', 'CANARY') AS BLOB)",
        "UPDATE chunks SET crc32c=0",
        "UPDATE chunks SET data=zeroblob(9)",
        "DELETE FROM chunks",
    ):
        kill_after_recording(environment)
        (path,) = (tmp_path / "spool" / "blobs").glob("*.db")
        with sqlite3.connect(path) as database:
            database.execute(statement)
        database.close()
        with Backup.from_env(environment) as backup:
            archiver_of(backup).drain(120)
            for error in session_of(backup).spool.unreadable:
                heard.raised(error)
            heard.said += [repr(session_of(backup).spool.waiting())]
        path.unlink(missing_ok=True)
    heard.check()
    assert heard.said
    assert not any("CANARY" in text for text in heard.said)


DYING: Final = """
import json, os, sys
from jobs_backup import Backup
backup = Backup.from_env(json.loads(sys.argv[1]), archive=False)
backup.record(json.loads(sys.argv[2]), source_id="web")
os._exit(9)
"""


def kill_after_recording(environment: Mapping[str, str]) -> None:
    arguments = [sys.executable, "-c", DYING, json.dumps(dict(environment)), json.dumps({"userId": USER, "text": PAYLOAD})]
    assert subprocess.run(arguments, check=False, timeout=120).returncode == 9


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS if CAMPAIGN else ["nothing", "part refused"])
def test_the_command_shows_no_secret(tmp_path: Path, fault: str) -> None:
    """On its outputs, in every output format; the SDK logs nothing there."""
    method, target, answer = FAULTS[fault]
    file = tmp_path / "in"
    bad = [
        f'{{"userId":"{USER}","text":"{PAYLOAD}',
        f"{PAYLOAD}",
        f'["{USER}"]',
        f'{{"{PAYLOAD}":"\\ud800"}}',
        f'{{"a":1}}{PAYLOAD}',
    ]
    file.write_text(f'{{"userId":"{USER}","text":"{PAYLOAD}"}}\n' + "".join(f"{line}\n" for line in bad))
    said: list[str] = []
    with FaultProxy() as server:
        server.fail(answer, method=method, target=target, times=ALWAYS)
        behave(server)
        env = store_environment(tmp_path, server.url, JOBS_BACKUP_SHUTDOWN_GRACE="0s")
        env_file = tmp_path / "docker.env"
        env_file.write_text("".join(f"{name}={text}\n" for name, text in env.items()))
        for arguments in (
            ["run", file, "--source-id", "web", "-v", "--env-file", env_file],
            ["archive", "--once", "-v", "--json", "--env-file", env_file],
            ["providers", "S3"],
        ):
            with start(*arguments, env=env) as process:
                stdout, stderr = process.communicate(timeout=120)
            assert "Traceback" not in stderr
            assert process.returncode in (0, 1, 3), stderr
            said += [stdout, stderr]
    everything = "\n".join(said)
    assert [canary for canary in CANARIES if canary in everything] == []
    assert "4 lines rejected" in everything
    assert "botocore" not in everything
    assert ("uploaded web/gw/" in everything) is (fault == "nothing")


def test_what_is_printed_can_not_steer_a_terminal() -> None:
    """File names, and the messages of a store, may contain any characters."""
    assert printable("a\x1b]0;title\x07\nb\u202f\x9b31mé🪣\udcff") == "a\\x1b]0;title\\x07\\nb\u202f\\x9b31mé🪣\\udcff"
    assert printable("\u2028\u2029\x85\u202e\u2066 ") == "\\u2028\\u2029\\x85\\u202e\\u2066 "


def test_the_progress_display_shows_an_error_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Brackets in it are not markup: a lone closing tag would crash the display, and with it the command."""
    from jobs_backup.cli.terminal import Terminal

    environment = file_environment(tmp_path, **FAST_RETRY, JOBS_BACKUP_BUCKET=str(tmp_path / "[red]x[/b]"))
    monkeypatch.setenv("COLUMNS", "500")
    with Backup.from_env(environment) as backup:
        backup.record({}, source_id="web")
        with pytest.raises(StorePaused):
            backup.flush(timeout=120)
        terminal = Terminal(session_of(backup), [], "events")
        terminal.look()
        with terminal._bars.console.capture() as captured:
            terminal._bars.console.print(terminal._bars.get_renderable())
    assert "[red]x[/b]" in captured.get()


def test_reprs_of_what_holds_secrets() -> None:
    environment = {"JOBS_BACKUP_BUCKET": "events", "AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET}
    settings = S3Settings.from_environment(
        {**environment, "AWS_SESSION_TOKEN": TOKEN, "JOBS_BACKUP_S3_PROXY": f"http://u:{PASSWORD}@h"}
    )
    connection = settings.connection()
    call = Call("UploadPart", connection, "key", UPLOAD_ID)
    shown = "".join(f"{one} {one!r} {one!s}" for one in (settings, connection, call, Upload(key="k", id=UPLOAD_ID)))
    assert "UploadPart s3://events/key" in shown
    assert [canary for canary in (*CANARIES, KEY_ID) if canary in shown] == []


# Links and tricks with paths in FILE


def directory_provider(directory: Path) -> FileProvider:
    (directory / "bucket").mkdir(exist_ok=True)
    return FileProvider.from_settings({"JOBS_BACKUP_BUCKET": str(directory / "bucket")})


def write(provider: FileProvider, key: str, *, if_absent: bool = True) -> None:
    provider.write(key, BytesBody(b"data"), crc32c(b"data"), if_absent)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A directory whose contents must not change."""
    directory = tmp_path / "elsewhere"
    directory.mkdir()
    (directory / "precious").write_text("precious")
    yield directory
    assert {path.name: path.read_text() for path in directory.iterdir()} == {"precious": "precious"}


@pytest.mark.parametrize(
    "key",
    [
        "", "/", "/etc/passwd", "..", "../x", "a/../../x", "a/..", "a/./b", "./a", "a//b", "a/", "a\0b", ".jobs-backup",
        ".jobs-backup/x", ".jobs-backup/../x",
    ],
)  # fmt: skip
def test_a_key_that_names_no_object_is_refused_everywhere(tmp_path: Path, elsewhere: Path, key: str) -> None:
    provider = directory_provider(tmp_path)
    write(provider, "good")
    calls: list[Callable[[], object]] = [
        lambda: write(provider, key), lambda: write(provider, key, if_absent=False), lambda: provider.create_multipart(key),
        lambda: provider.read(key),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(ConfigurationError):
            call()
    receipt = provider.delete([key, "good"])
    assert receipt.deleted == {"good"}
    assert receipt.failed.keys() == {key}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bucket", "elsewhere"]
    assert objects(tmp_path) == {}


@pytest.mark.parametrize("where", ["web", "web/gw", "web/gw/1"])
@pytest.mark.parametrize("to", ["elsewhere", "elsewhere/precious", "nowhere", "itself", "work"])
def test_no_link_in_a_bucket_is_followed(tmp_path: Path, elsewhere: Path, where: str, to: str) -> None:
    provider = directory_provider(tmp_path)
    bucket = tmp_path / "bucket"
    link = bucket / where
    link.parent.mkdir(parents=True, exist_ok=True)
    (bucket / ".jobs-backup").mkdir()
    link.symlink_to({"itself": link, "work": bucket / ".jobs-backup"}.get(to, tmp_path / to))
    calls: list[Callable[[], object]] = [
        lambda: write(provider, "web/gw/1"), lambda: write(provider, "web/gw/1", if_absent=False),
        lambda: provider.create_multipart("web/gw/1"), lambda: provider.read("web/gw/1"),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(ConfigurationError, match="web/gw/1"):
            call()
    assert provider.delete(["web/gw/1"]).failed.keys() == {"web/gw/1"}
    assert link.is_symlink()
    assert not (tmp_path / "nowhere").exists()
    assert [one.key for one in provider.list("", "").objects] == []
    assert list((bucket / ".jobs-backup").iterdir()) == []


def test_a_link_in_the_place_of_the_work_directory_is_refused(tmp_path: Path, elsewhere: Path) -> None:
    """Drafts would be written, and uploads removed, at its target."""
    provider = directory_provider(tmp_path)
    (tmp_path / "bucket" / ".jobs-backup").symlink_to(elsewhere)
    upload = Upload(key="key", id="precious")
    calls: list[Callable[[], object]] = [
        lambda: write(provider, "key"), lambda: provider.create_multipart("key"), lambda: provider.abort_multipart(upload),
        lambda: provider.write_part(upload, 1, BytesBody(b"data")),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(ConfigurationError, match="symbolic link"):
            call()
    assert objects(tmp_path) == {}


def test_a_link_in_the_place_of_an_upload_is_none(tmp_path: Path, elsewhere: Path) -> None:
    """Nothing is written at its target, and aborting removes nothing there."""
    provider = directory_provider(tmp_path)
    upload = provider.create_multipart("key")
    part = provider.write_part(upload, 1, BytesBody(b"data"))
    directory = tmp_path / "bucket" / ".jobs-backup" / upload.id
    (directory / "1").unlink()
    directory.rmdir()
    directory.symlink_to(elsewhere)
    with pytest.raises(UploadGone):
        provider.write_part(upload, 1, BytesBody(b"data"))
    with pytest.raises(UploadGone):
        provider.complete_multipart(upload, [part], 4, crc32c(b"data"), True)
    assert provider.abort_multipart(upload).outcome is Outcome.GONE


@pytest.mark.parametrize("id_", ["..", ".", "", "../../elsewhere", "a/b", "/etc", "precious\0", "*"])
def test_an_upload_that_is_none_is_gone(tmp_path: Path, elsewhere: Path, id_: str) -> None:
    provider = directory_provider(tmp_path)
    upload = Upload(key="key", id=id_)
    assert provider.abort_multipart(upload).outcome is Outcome.GONE
    with pytest.raises(UploadGone) as caught:
        provider.write_part(upload, 1, BytesBody(b"data"))
    assert not id_ or id_ not in caught.value.message or id_ == "."
    assert (tmp_path / "bucket").is_dir()


def test_a_bucket_that_is_reached_through_a_link_is_a_bucket(tmp_path: Path) -> None:
    """Its owner chose this name; disks are mounted like this."""
    (tmp_path / "bucket").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "bucket")
    write(FileProvider.from_settings({"JOBS_BACKUP_BUCKET": str(tmp_path / "link")}), "a/b")
    assert objects(tmp_path) == {"a/b": b"data"}


def test_a_source_that_is_called_like_the_work_directory_holds_nothing_up(tmp_path: Path) -> None:
    with Backup.from_env(file_environment(tmp_path)) as backup:
        for source in (".jobs-backup", "..", "/", "~", "web"):
            backup.record({"source": source}, source_id=source)
        backup.flush(timeout=120)
    assert {event["payload"]["source"] for event in events(tmp_path)} == {".jobs-backup", "..", "/", "~", "web"}


# TLS


@pytest.fixture
def secure_store(tmp_path: Path) -> Iterator[tuple[FaultProxy, Path]]:
    """A store with an untrusted certificate, and that certificate's file."""
    (tmp_path / "tls").mkdir()
    tls, bundle = certificate(tmp_path / "tls")
    with FaultProxy(tls=tls) as server:
        behave(server)
        yield server, bundle


def test_tls_is_verified_for_every_kind_of_store(secure_store: tuple[FaultProxy, Path]) -> None:
    server, _ = secure_store
    minio = {"JOBS_BACKUP_STORAGE_PROVIDER": "MINIO", "MINIO_ENDPOINT": server.url.removeprefix("https://"), "MINIO_SSL": "true",
             "MINIO_ACCESS_KEY_ID": KEY_ID, "MINIO_SECRET_ACCESS_KEY": SECRET}  # fmt: skip
    spaces = {"JOBS_BACKUP_STORAGE_PROVIDER": "DIGITAL_OCEAN_SPACES", "DO_SPACES_ENDPOINT": server.url,
              "DO_SPACES_ACCESS_KEY_ID": KEY_ID, "DO_SPACES_SECRET_ACCESS_KEY": SECRET}  # fmt: skip
    role = {"AWS_ENDPOINT_URL_STS": server.url, "BACKUP_IAM_ROLE_ARN": "arn:aws:iam::123456789012:role/backup"}
    cases: list[dict[str, str]] = [{}, minio, spaces, {**role, "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1"}]
    for variables in cases:
        with pytest.raises(ConfigurationError, match="certificate verify failed") as caught:
            scripted(server.url, **variables).write("key", b"data")
        assert "JOBS_BACKUP_S3_CA_BUNDLE" in caught.value.hint
    assert server.requests == []


@pytest.mark.parametrize("variable", ["JOBS_BACKUP_S3_CA_BUNDLE", "AWS_CA_BUNDLE"])
def test_tls_with_a_bundle(
    tmp_path: Path, secure_store: tuple[FaultProxy, Path], variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, bundle = secure_store

    def put(path: Path | str) -> None:
        monkeypatch.setenv(variable, str(path))
        scripted(server.url, **({variable: str(path)} if variable.startswith("JOBS") else {})).write("key", b"data")

    put(bundle)
    assert len(server.requests) == 1
    (tmp_path / "junk").write_text("junk")
    (tmp_path / "broken").write_text(bundle.read_text().replace("A", "?"))
    for wrong in ("junk", "broken", "nowhere", "."):
        with pytest.raises(ConfigurationError) as caught:
            put(tmp_path / wrong)
        assert variable in caught.value.one_line()
    (tmp_path / "other").mkdir()
    _, other = certificate(tmp_path / "other")
    with pytest.raises(ConfigurationError):
        put(other)
    assert len(server.requests) == 1


def test_tls_is_verified_by_the_command_unless_it_is_turned_off(tmp_path: Path, secure_store: tuple[FaultProxy, Path]) -> None:
    server, bundle = secure_store
    (tmp_path / "in").write_text('{"n":1}\n')
    arguments: list[str | Path] = ["run", tmp_path / "in", "--source-id", "web"]
    env = store_environment(tmp_path, server.url)
    code, _, stderr = run(*arguments, env=env)
    assert code == 1
    assert "certificate verify failed" in stderr
    assert "set JOBS_BACKUP_S3_CA_BUNDLE to the store's CA" in stderr
    assert server.requests == []
    code, _, stderr = run(*arguments, env={**env, "JOBS_BACKUP_S3_VERIFY_TLS": "false"})
    assert code == 0
    assert "JOBS_BACKUP_S3_VERIFY_TLS is off: the identity of https://127.0.0.1" in stderr
    assert [request.method for request in server.requests] == ["POST", "PUT", "POST"]
    (tmp_path / "in").write_text('{"n":2}\n')
    code, _, stderr = run(*arguments, env={**env, "AWS_CA_BUNDLE": str(bundle)})
    assert code == 0
    assert "VERIFY_TLS" not in stderr
