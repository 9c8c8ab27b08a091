"""The sidecar: recorded events are durable, a refused request is refused as a whole, and no client can exceed the limits."""

from __future__ import annotations

import contextlib
import gzip
import json
import resource
import select
import signal
import socket
import ssl
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from buckets import events, file_environment
from commands import run
from servers import certificate
from serving import TOKEN, Sidecar, serve, serve_with_few_files


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return file_environment(tmp_path)


@pytest.fixture
def sidecar(env: dict[str, str]) -> Iterator[Sidecar]:
    keys = "plain,2abcKEY=web"
    with serve(env, JOBS_BACKUP_SERVER_WRITE_KEYS=keys, JOBS_BACKUP_SERVER_MAX_BODY="100kB") as one:
        yield one


def recorded(directory: Path) -> list[str]:
    """Message ids in the bucket, once the sidecar has ended."""
    return sorted(event["messageId"] for event in events(directory))


class TestRecord:
    def test_json_and_ndjson_get_ids_and_are_in_the_bucket_at_the_end(self, sidecar: Sidecar, tmp_path: Path) -> None:
        one = sidecar.post("/v1/events?source_id=web&workspace_id=ws", {"messageId": "a", "n": 1.10})
        many = sidecar.post("/v1/events?source_id=web&workspace_id=ws", [{"messageId": "b"}, {"messageId": "c"}])
        lines = b'{"messageId":"d"}\n\n{"messageId":"e"}'
        more = sidecar.post("/v1/events?source_id=web&workspace_id=ws", lines, Content_Type="application/x-ndjson")
        ids = one.json["jobs"] + many.json["jobs"] + more.json["jobs"]
        assert [answer.status for answer in (one, many, more)] == [200, 200, 200]
        assert all(isinstance(id_, str) for id_ in ids)
        assert [int(id_) - int(ids[0]) for id_ in ids] == [0, 1, 2, 3, 4]
        code, stderr = sidecar.end()
        assert code == 0, stderr
        assert recorded(tmp_path) == ["a", "b", "c", "d", "e"]
        assert "5 events recorded" in stderr

    def test_the_bytes_of_a_payload_stay(self, sidecar: Sidecar, tmp_path: Path) -> None:
        body = b'[ {"b" : 1.10,"a":12345678901234567890} , {"\\u00e9":"\xc3\xa9"}]'
        assert sidecar.post("/v1/events?source_id=web", body).status == 200
        sidecar.end()
        (path,) = (tmp_path / "bucket").rglob("*.json.gz")
        content = gzip.decompress(path.read_bytes())
        assert b'{"b" : 1.10,"a":12345678901234567890}' in content
        assert b'{"\\u00e9":"\xc3\xa9"}' in content

    @pytest.mark.parametrize(
        ("body", "index"), [(b'[{"a":1},3]', 1), (b"nothing", 0), (b" ", 0), (b'{"a":"\xff"}', 0), (b'[{"a":1},{"b":1]', None)]
    )
    def test_what_is_wrong_is_refused_whole(self, sidecar: Sidecar, tmp_path: Path, body: bytes, index: int | None) -> None:
        answer = sidecar.post("/v1/events?source_id=web", body)
        assert (answer.status, answer.code) == (400, "InvalidEvent")
        if index is not None:
            assert answer.json["error"]["index"] == index
        sidecar.end()
        assert events(tmp_path) == []

    def test_a_request_has_an_id(self, sidecar: Sidecar) -> None:
        own = sidecar.post("/v1/events?source_id=web", {}, X_Request_ID="order-17")
        made = sidecar.post("/v1/events", {}, X_Request_ID="a b\tc")
        assert own.headers["x-request-id"] == "order-17"
        assert made.json["error"]["request_id"] == made.headers["x-request-id"] != "a b\tc"

    def test_a_request_is_a_line_in_the_log_without_what_was_sent(self, env: dict[str, str]) -> None:
        with serve(env, "--verbose", JOBS_BACKUP_LOG_FORMAT="json") as sidecar:
            sidecar.post("/v1/events?source_id=web", {"a": "canary"}, X_Request_ID="order-17")
            _, stderr = sidecar.end()
        (line,) = [one for one in map(json.loads, stderr.splitlines()) if one.get("request_id") == "order-17"]
        assert (line["method"], line["path"], line["status"]) == ("POST", "/v1/events", 200)
        assert line["seconds"] > 0
        assert "canary" not in stderr


class TestDeliveriesAndFailures:
    def test_what_was_delivered_is_gone_and_a_failure_is_there(self, sidecar: Sidecar, tmp_path: Path, env: dict[str, str]) -> None:
        jobs = sidecar.post("/v1/events?source_id=web", [{"messageId": "a"}, {"messageId": "b"}]).json["jobs"]
        failure = {"jobId": jobs[0], "error": {"message": "no", "code": 422}, "payload": {"final": 1}, "destinationId": "d1"}
        assert sidecar.post("/v1/failures", failure).json == {"failures": 1}
        assert sidecar.post("/v1/delivered", jobs).json == {"acknowledged": 2}
        sidecar.end()
        run("archive", "--once", env=env)
        (line,) = events(tmp_path)
        assert (line["jobId"], line["sourceId"], line["error"]["code"]) == (jobs[0], "web", "422")

    def test_an_id_of_another_spool_is_unknown_and_that_is_said(self, sidecar: Sidecar) -> None:
        (job,) = sidecar.post("/v1/events?source_id=web", {}).json["jobs"]
        answer = sidecar.post("/v1/delivered", [job, "5"])
        assert answer.status == 200
        assert (answer.json["acknowledged"], answer.json["unknown"], answer.json["unknown_count"]) == (1, ["5"], 1)
        assert "another instance" in answer.json["message"]

    def test_a_failure_of_an_unknown_job_is_refused_with_its_place(self, sidecar: Sidecar, tmp_path: Path) -> None:
        known = {"sourceId": "web", "error": "no", "payload": {}}
        answer = sidecar.post("/v1/failures", [known, {"jobId": "5", "error": "no", "payload": {}}])
        assert (answer.status, answer.code, answer.json["error"]["index"]) == (404, "UnknownJob", 1)
        sidecar.end()
        assert events(tmp_path) == []


class TestRudderStack:
    def test_each_kind_is_taken_for_the_source_of_the_write_key(self, sidecar: Sidecar, tmp_path: Path) -> None:
        for kind in ("identify", "track", "page", "screen", "group", "alias"):
            assert sidecar.post(f"/v1/{kind}", {"messageId": kind}, write_key="2abcKEY").status == 200
        batch = {"batch": [{"type": "track", "messageId": "x"}, {"messageId": "y"}], "sentAt": "2026-01-01T00:00:00Z"}
        assert len(sidecar.post("/v1/batch", batch, write_key="plain").json["jobs"]) == 2
        sidecar.end()
        types = {event["messageId"]: event["payload"].get("type") for event in events(tmp_path)}
        kinds = {kind: kind for kind in ("identify", "track", "page", "screen", "group", "alias")}
        assert types == {**kinds, "x": "track", "y": None}
        assert sorted({path.relative_to(tmp_path / "bucket").parts[0] for path in tmp_path.rglob("*.json.gz")}) == ["plain", "web"]


class TestAccess:
    @pytest.mark.parametrize("path", ["/v1/events?source_id=web", "/v1/delivered", "/v1/failures", "/v1/track", "/v1/batch"])
    @pytest.mark.parametrize(
        "given",
        [{"token": None}, {"token": "wrong-token-0123456789"}, {"write_key": "wrong"}, {"token": TOKEN[:-1]}, {"write_key": ""}],
    )
    def test_nobody_else_gets_in(self, sidecar: Sidecar, path: str, given: dict[str, str | None]) -> None:
        answer = sidecar.post(path, {}, **given)
        assert (answer.status, answer.code) == (401, "Unauthorized")
        assert answer.headers["www-authenticate"].startswith(("Basic", "Bearer"))

    def test_a_write_key_may_record_its_source_alone(self, sidecar: Sidecar) -> None:
        assert sidecar.post("/v1/events", {}, write_key="2abcKEY").status == 200
        assert sidecar.post("/v1/events?source_id=web", {}, write_key="2abcKEY").status == 200
        assert sidecar.post("/v1/events?source_id=ios", {}, write_key="2abcKEY").status == 403
        assert sidecar.post("/v1/events?workspace_id=other", {}, write_key="2abcKEY").status == 403
        assert sidecar.post("/v1/delivered", [], write_key="2abcKEY").status == 403
        assert sidecar.get("/status", write_key="2abcKEY").status == 403

    def test_health_is_for_everybody_and_the_rest_is_not(self, sidecar: Sidecar) -> None:
        assert [sidecar.get(path, token=None).status for path in ("/healthz", "/readyz", "/openapi.json")] == [200, 200, 200]
        assert [sidecar.get(path, token=None).status for path in ("/status", "/metrics")] == [401, 401]
        assert sidecar.get("/status").json["behind"] == ""
        assert b"jobs_backup_http_requests_total" in sidecar.get("/metrics").body

    def test_from_elsewhere_nobody_may_record_without_a_token(self, env: dict[str, str]) -> None:
        code, _, stderr = run("serve", "--host", "0.0.0.0", "--port", "0", env=env)
        assert code == 2
        assert "JOBS_BACKUP_SERVER_TOKEN" in stderr

    def test_a_token_is_in_no_output(self, sidecar: Sidecar) -> None:
        sidecar.post("/v1/events?source_id=web", {}, token="secret-canary-of-a-caller")
        _, stderr = sidecar.end()
        assert "canary" not in stderr


class TestBounds:
    def test_a_body_that_is_too_large_is_refused(self, sidecar: Sidecar) -> None:
        answer = sidecar.post("/v1/events?source_id=web", {"a": "x" * 100_001})
        assert (answer.status, answer.code) == (413, "TooLarge")

    def test_a_bomb_is_refused_before_it_is_unpacked(self, sidecar: Sidecar) -> None:
        bomb = zlib.compress(bytes(50_000_000), 9, 31)
        answer = sidecar.post("/v1/events?source_id=web", bomb, Content_Encoding="gzip")
        assert (answer.status, answer.code) == (413, "TooLarge")

    def test_gzip_is_unpacked_also_of_several_members(self, sidecar: Sidecar) -> None:
        body = gzip.compress(b'[{"a":1},') + gzip.compress(b'{"a":2}]')
        assert len(sidecar.post("/v1/events?source_id=web", body, Content_Encoding="gzip").json["jobs"]) == 2
        for wrong in (body[:-3], b"not gzip", body + b"rest"):
            answer = sidecar.post("/v1/events?source_id=web", wrong, Content_Encoding="gzip")
            assert (answer.status, answer.code) == (400, "BadRequest")

    def test_other_types_and_encodings_are_refused(self, sidecar: Sidecar) -> None:
        for headers in (
            {"Content_Type": "text/plain"},
            {"Content_Encoding": "br"},
            {"Content_Type": "application/json; charset=latin1"},
        ):
            answer = sidecar.post("/v1/events?source_id=web", {}, **headers)
            assert (answer.status, answer.code) == (415, "UnsupportedType")

    def test_too_many_events_are_refused(self, env: dict[str, str]) -> None:
        with serve(env, JOBS_BACKUP_SERVER_MAX_EVENTS="2") as sidecar:
            assert sidecar.post("/v1/events?source_id=web", [{}, {}]).status == 200
            assert sidecar.post("/v1/events?source_id=web", [{}, {}, {}]).code == "TooLarge"
            assert sidecar.post("/v1/delivered", ["1", "2", "3"]).code == "TooLarge"

    def test_beyond_the_rate_one_has_to_come_again(self, env: dict[str, str]) -> None:
        with serve(env, JOBS_BACKUP_SERVER_RATE="10", JOBS_BACKUP_SERVER_WRITE_KEYS="key") as sidecar:
            assert sidecar.post("/v1/events?source_id=web", [{}] * 150).status == 200
            answer = sidecar.post("/v1/events?source_id=web", {})
            assert (answer.status, answer.code) == (429, "TooManyEvents")
            assert 1 <= int(answer.headers["retry-after"]) <= 6
            assert sidecar.post("/v1/track", {}, write_key="key").status == 200

    def test_bodies_in_memory_share_a_bound(self, env: dict[str, str]) -> None:
        with serve(env, JOBS_BACKUP_SERVER_MAX_PENDING="1kB") as sidecar:
            parts = urlsplit(sidecar.url)
            body = json.dumps({"a": "x" * 800}).encode()
            head = (
                f"POST /v1/events?source_id=web HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            with socket.create_connection((parts.hostname, parts.port), timeout=120) as connection:
                connection.sendall(head.encode() + body[:10])
                while (answer := sidecar.post("/v1/events?source_id=web", body)).status == 200:
                    time.sleep(0.02)  # the server has not read the other one's head yet
                assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, "Busy", "1")
                connection.sendall(body[10:])
                assert _receive(connection).startswith(b"HTTP/1.1 200")
            assert sidecar.post("/v1/events?source_id=web", body).status == 200

    def test_a_full_spool_is_reported(self, env: dict[str, str], tmp_path: Path) -> None:
        (tmp_path / "bucket").rmdir()
        with serve(env, JOBS_BACKUP_SPOOL_MAX_BYTES="100") as sidecar:
            sidecar.post("/v1/events?source_id=web", [{"a": "x" * 100}] * 50)
            answer = sidecar.post("/v1/events?source_id=web", {})
            assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, "SpoolFull", "5")
            until = time.monotonic() + 120
            while sidecar.get("/readyz").status != 503 and time.monotonic() < until:
                time.sleep(0.1)  # the next check counts what was sealed meanwhile
            assert sidecar.get("/readyz").status == 503
            assert sidecar.get("/healthz").status == 200

    @pytest.mark.parametrize(
        "sent",
        [
            b"",
            b"POST /v1/events HTTP/1.1\r\nX-Slow: ",
            b"POST /v1/events?source_id=web HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\n"
            b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{" % TOKEN.encode(),
        ],
    )
    def test_a_slow_client_is_cut(self, env: dict[str, str], sent: bytes) -> None:
        with serve(env, JOBS_BACKUP_SERVER_READ_TIMEOUT="300ms") as sidecar:
            parts = urlsplit(sidecar.url)
            with socket.create_connection((parts.hostname, parts.port), timeout=120) as connection:
                connection.sendall(sent)
                answer = b""
                while data := _receive(connection):
                    answer += data
            assert answer == b"" or b" 408 " in answer

    def test_a_head_that_never_ends_is_cut(self, sidecar: Sidecar) -> None:
        parts = urlsplit(sidecar.url)
        with socket.create_connection((parts.hostname, parts.port), timeout=120) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
            with pytest.raises(OSError, match=r"reset|[Bb]roken"):  # noqa: PT012 - the sockets decide which
                for _ in range(1000):
                    connection.sendall(b"X-Filler: " + b"x" * 10_000 + b"\r\n")
                    time.sleep(0.001)


def exchange(sidecar: Sidecar, *pieces: bytes) -> bytes:
    """All responses to this input, sent one piece at a time."""
    url = urlsplit(sidecar.url)
    with socket.create_connection((url.hostname, url.port), timeout=120) as connection:
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(0.05)
        answered = b""
        try:
            while data := connection.recv(1 << 16):
                answered += data
        except ConnectionResetError:
            pass  # the server closed it
        return answered


OFFER = (
    b"POST /v1/events?source_id=web HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer %b\r\nContent-Type: application/x-ndjson\r\n"
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n" % TOKEN.encode()
)
"""As Java's HttpClient sends it, unless set to HTTP/1.1."""
LAST = b"GET /healthz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
LINE = b'{"messageId":"a"}\n'


class TestUpgrade:
    """An offered upgrade is ignored, as RFC 9110, 7.8 allows."""

    @pytest.mark.parametrize(
        "pieces",
        [
            [OFFER + b"Content-Length: 18\r\n\r\n" + LINE, LAST],
            [OFFER.replace(b"h2c", b"websocket") + b"Content-Length: 18\r\n\r\n", LINE, LAST],
            [OFFER[:150], OFFER[150:] + b"Content-Length: 18\r\n\r", b"\n" + LINE[:3], LINE[3:], LAST],
            [OFFER + b"Transfer-Encoding: chunked\r\n\r\n12\r\n" + LINE + b"\r\n", b"0\r\n\r\n", LAST],
            [OFFER + b"Content-Length: 18\r\n\r\n" + LINE + LAST],
        ],
        ids=["at once", "websocket", "split", "chunked", "pipelined"],
    )
    def test_its_body_is_recorded(self, sidecar: Sidecar, tmp_path: Path, pieces: list[bytes]) -> None:
        answered = exchange(sidecar, *pieces)
        assert answered.count(b"HTTP/1.1 200 OK") == 2, answered
        assert answered.count(b'{"jobs":["') == 1
        sidecar.end()
        assert recorded(tmp_path) == ["a"]


class TestConnections:
    def test_a_trailer_takes_no_memory(self, sidecar: Sidecar) -> None:
        url = urlsplit(sidecar.url)
        with socket.create_connection((url.hostname, url.port), timeout=120) as connection:
            connection.sendall(b"POST /v1/events HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
            with pytest.raises(OSError, match=r"reset|pipe|Broken"):  # noqa: PT012 - until it is closed
                for number in range(1000):
                    connection.sendall(b"x-%d: %b\r\n" % (number, b"y" * 10_000))

    def test_a_small_trailer_is_ignored(self, sidecar: Sidecar, tmp_path: Path) -> None:
        head = OFFER.partition(b"Connection:")[0]
        body = b"Transfer-Encoding: chunked\r\n\r\n12\r\n" + LINE + b"\r\n0\r\nX-Checksum: 1\r\n\r\n"
        assert exchange(sidecar, head + body, LAST).count(b"HTTP/1.1 200 OK") == 2
        sidecar.end()
        assert recorded(tmp_path) == ["a"]

    def test_those_that_ask_for_nothing_are_bounded(self, env: dict[str, str]) -> None:
        with serve(env, JOBS_BACKUP_SERVER_MAX_CONNECTIONS="5") as sidecar, contextlib.ExitStack() as stack:
            url = urlsplit(sidecar.url)
            place = (url.hostname, url.port)
            opened = [stack.enter_context(socket.create_connection(place, timeout=120)) for _ in range(200)]
            left, deadline = set(opened), time.monotonic() + 120
            while len(left) > 5 and time.monotonic() < deadline:
                time.sleep(0.1)
                left -= set(select.select([*left], [], [], 0)[0])  # the end of the stream is readable
            assert left == set(opened[-5:]), "the older ones made room"
            assert sidecar.get("/healthz").status == 200
            _, stderr = sidecar.end()
            assert stderr.count("5 connections are open, the maximum") == 1

    def test_those_at_work_are_not_closed_and_more_are_asked_to_come_again(self, env: dict[str, str], tmp_path: Path) -> None:
        body = b'{"messageId":"a"}'
        head = OFFER.partition(b"Connection:")[0] + b"Content-Length: 17\r\nExpect: 100-continue\r\n\r\n"
        with serve(env, JOBS_BACKUP_SERVER_MAX_CONNECTIONS="3") as sidecar, contextlib.ExitStack() as stack:
            url = urlsplit(sidecar.url)
            opened = [stack.enter_context(socket.create_connection((url.hostname, url.port), timeout=120)) for _ in range(3)]
            for one in opened:
                one.sendall(head)
                assert _receive(one).startswith(b"HTTP/1.1 100")
            answer = sidecar.get("/healthz")
            assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, "Busy", "1")
            for one in opened:
                one.sendall(body)
                assert _receive(one).startswith(b"HTTP/1.1 200")
            assert sidecar.get("/healthz").status == 200, "one of those that are idle now makes room"
            sidecar.end()
        assert recorded(tmp_path) == ["a"] * 3

    @pytest.mark.slow
    def test_ten_thousand_idle_ones_keep_nobody_out(self, env: dict[str, str], tmp_path: Path) -> None:
        """With too few descriptors: the sidecar reports it, still accepts newcomers, and does not starve the spool."""
        wanted = 10_400
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard != resource.RLIM_INFINITY and hard < wanted:
            pytest.skip(f"this process may open {hard:,} files: ulimit -n {wanted}")
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
        try:
            with serve_with_few_files(env, 600) as sidecar, contextlib.ExitStack() as stack:
                url = urlsplit(sidecar.url)
                for _ in range(10_000):
                    one = stack.enter_context(socket.create_connection((url.hostname, url.port), timeout=120))
                    one.sendall(LAST.replace(b"close", b"keep-alive"))
                    assert _receive(one).startswith(b"HTTP/1.1 200")
                assert sidecar.post("/v1/events?source_id=web", {"messageId": "a"}).status == 200
                code, stderr = sidecar.end()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert (code, "at most 600 files may be open, which allows at most 280 connections" in sidecar.said) == (0, True), stderr
        assert "280 connections are open" in stderr
        assert "Too many open files" not in stderr
        assert recorded(tmp_path) == ["a"]

    def test_a_body_that_is_not_whole_is_refused(self, sidecar: Sidecar, tmp_path: Path) -> None:
        head = OFFER.partition(b"Connection:")[0]
        answered = exchange(sidecar, head.replace(b"HTTP/1.1", b"HTTP/1.0") + b"\r\n")
        assert b" 400 Bad Request" in answered
        assert b"the body is empty" in answered


class TestMany:
    @pytest.mark.parametrize("path", ["/v1/events?source_id=web", "/v1/batch", "/v1/delivered"])
    def test_far_too_many_are_refused_before_they_are_taken_apart(self, env: dict[str, str], path: str) -> None:
        with serve(env, JOBS_BACKUP_SERVER_MAX_EVENTS="100", JOBS_BACKUP_SERVER_WRITE_KEYS="plain") as sidecar:
            one = b'"1"' if path == "/v1/delivered" else b"{}"
            many = b"[" + (one + b",") * 3_000_000 + one + b"]"
            key = "plain" if path == "/v1/batch" else None
            body = b'{"batch":' + many + b"}" if path == "/v1/batch" else many
            answer = sidecar.post(path, gzip.compress(body), Content_Encoding="gzip", write_key=key)
            assert (answer.status, answer.code) == (413, "TooLarge")
            status = Path(f"/proc/{sidecar.process.pid}/status").read_text()
            peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
            assert peak < 120, "MiB; taken apart they would be 300"

    def test_events_with_many_commas_are_taken(self, env: dict[str, str], tmp_path: Path) -> None:
        with serve(env, JOBS_BACKUP_SERVER_MAX_EVENTS="3") as sidecar:
            one = {"messageId": "a", "list": list(range(300)), "text": '],[ \\" ,'}
            assert sidecar.post("/v1/events?source_id=web", [one, one, one]).status == 200
            answer = sidecar.post("/v1/events?source_id=web", [one, one, one, one])
            assert (answer.status, answer.code) == (413, "TooLarge")
            sidecar.end()
        assert recorded(tmp_path) == ["a"] * 3

    def test_an_id_that_is_reported_twice_counts_once(self, sidecar: Sidecar) -> None:
        (known,) = sidecar.post("/v1/events?source_id=web", {"messageId": "a"}).json["jobs"]
        answer = sidecar.post("/v1/delivered", ["99", known, "99", known]).json
        assert (answer["acknowledged"], answer["unknown_count"], answer["unknown"]) == (1, 1, ["99"])


class TestTls:
    def test_it_speaks_tls(self, env: dict[str, str], tmp_path: Path) -> None:
        _, certificate_file = certificate(tmp_path)
        names = ("JOBS_BACKUP_SERVER_TLS_CERTIFICATE", "JOBS_BACKUP_SERVER_TLS_KEY")
        files = dict(zip(names, (str(certificate_file), str(tmp_path / "key.pem")), strict=True))
        with serve({**env, **files}, "--host", "127.0.0.1") as sidecar:  # a name in the certificate
            assert sidecar.url.startswith("https://")
            context = ssl.create_default_context(cafile=certificate_file)
            assert sidecar.post("/v1/events?source_id=web", {}, context=context).status == 200
            code, stderr = sidecar.end()
            assert code == 0, stderr

    @pytest.mark.parametrize("key", [None, "/nonexistent/key.pem", "certificate.pem"])
    def test_what_can_not_be_used_is_reported(self, env: dict[str, str], tmp_path: Path, key: str | None) -> None:
        _, certificate_file = certificate(tmp_path)
        files = {"JOBS_BACKUP_SERVER_TLS_CERTIFICATE": str(certificate_file)}
        if key is not None:
            files["JOBS_BACKUP_SERVER_TLS_KEY"] = str(tmp_path / key)
        code, _, stderr = run("serve", "--port", "0", env={**env, **files})
        assert (code, stderr.count("\n"), "[ConfigurationError]" in stderr) == (2, 1, True), stderr


class TestStart:
    @pytest.mark.parametrize(
        "variables",
        [
            {"JOBS_BACKUP_SERVER_TOKEN": "short-canary"},
            {"JOBS_BACKUP_SERVER_WRITE_KEYS": "canary=,other"},
            {"JOBS_BACKUP_SERVER_HOST": "192.0.2.1", "JOBS_BACKUP_SERVER_TOKEN": TOKEN},
            {"JOBS_BACKUP_SERVER_PORT": "http"},
        ],
    )
    def test_wrong_settings_are_reported_without_secrets(self, env: dict[str, str], variables: dict[str, str]) -> None:
        code, _, stderr = run("serve", env={**env, "JOBS_BACKUP_SERVER_PORT": "0", **variables})
        assert (code, stderr.count("\n"), "[ConfigurationError]" in stderr, "canary" in stderr) == (2, 1, True, False), stderr

    def test_a_port_that_is_taken_is_reported(self, sidecar: Sidecar, env: dict[str, str]) -> None:
        code, _, stderr = run("serve", "--port", str(urlsplit(sidecar.url).port), env=env)
        assert (code, "cannot listen on" in stderr) == (2, True), stderr

    def test_others_work_beside_it_with_the_same_settings(self, env: dict[str, str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        with serve(env, JOBS_BACKUP_METRICS_PORT=port) as sidecar:
            assert sidecar.post("/v1/events?source_id=web", {}).status == 200
            code, _, stderr = run("archive", "--once", env={**env, "JOBS_BACKUP_METRICS_PORT": port})
            assert (code, "1 event in open batches of running processes" in stderr) == (1, True), stderr
            assert run("status", env=env)[0] == 0


class TestEnd:
    def test_sigterm_ends_what_has_begun_and_sends_the_rest(self, sidecar: Sidecar, tmp_path: Path) -> None:
        parts = urlsplit(sidecar.url)
        body = json.dumps({"messageId": "late"}).encode()
        head = (
            f"POST /v1/events?source_id=web HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        with socket.create_connection((parts.hostname, parts.port), timeout=120) as connection:
            connection.sendall(head.encode() + body[:5])
            assert sidecar.get("/healthz").status == 200, "what was sent before this has been read"
            sidecar.process.send_signal(signal.SIGTERM)
            with pytest.raises(ConnectionRefusedError):  # noqa: PT012 - sooner or later
                while True:
                    socket.create_connection((parts.hostname, parts.port), timeout=120).close()
                    time.sleep(0.02)
            connection.sendall(body[5:])
            assert _receive(connection).startswith(b"HTTP/1.1 200")
        _, stderr = sidecar.process.communicate(timeout=120)
        assert sidecar.process.returncode == 0, stderr
        assert recorded(tmp_path) == ["late"]

    def test_failures_are_no_events_in_its_summary(self, sidecar: Sidecar) -> None:
        assert sidecar.post("/v1/events?source_id=web", {}).status == 200
        for _ in range(3):
            assert sidecar.post("/v1/failures", {"sourceId": "web", "payload": {}, "error": "no"}).status == 200
        sidecar.process.send_signal(signal.SIGTERM)
        _, stderr = sidecar.process.communicate(timeout=120)
        assert "1 event recorded; 4 events in 2 objects" in stderr

    def test_killed_it_has_what_it_answered(self, env: dict[str, str], tmp_path: Path) -> None:
        acknowledged = []
        for number in range(3):
            with serve(env) as sidecar:
                for one in range(20):
                    answer = sidecar.post("/v1/events?source_id=web", {"messageId": f"{number}-{one}"})
                    acknowledged += [f"{number}-{one}"] if answer.status == 200 else []
                sidecar.process.kill()
        run("archive", "--once", env=env)
        assert recorded(tmp_path) == sorted(acknowledged)
        assert len(acknowledged) == 60


def _receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except ConnectionResetError:
        return b""
