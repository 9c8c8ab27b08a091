"""Requests of web pages: CORS, beacons, and what a page must not make a browser do."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from buckets import events, file_environment
from commands import run
from serving import Sidecar, serve

from jobs_backup.errors import ConfigurationError
from jobs_backup.inputs.http.origins import Origins

SHOP = "https://shop.example"
OTHER = "https://other.example"
PREFLIGHT: Final[dict[str, Any]] = {
    "Access_Control_Request_Method": "POST",
    "Access_Control_Request_Headers": "anonymousid,authorization,content-type",
}
BATCH = b'{"batch":[{"type":"track","messageId":"a"},{"type":"page","messageId":"b"}],"sentAt":"2026-11-30T00:00:00Z"}'


@pytest.fixture(scope="module")
def allowing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    env = file_environment(tmp_path_factory.mktemp("allowing"))
    keys = {"JOBS_BACKUP_SERVER_WRITE_KEYS": "2abcKEY=web", "JOBS_BACKUP_SERVER_CORS_ORIGINS": f" {SHOP}/ , http://localhost:3000,"}
    with serve({**env, **keys}) as sidecar:
        yield sidecar


def allowed(answer: object) -> dict[str, str]:
    headers: dict[str, str] = getattr(answer, "headers")  # noqa: B009
    return {name: value for name, value in headers.items() if name.startswith("access-control-")}


class TestOrigins:
    @pytest.mark.parametrize("origin", [SHOP, "http://localhost:3000", SHOP.upper()])
    def test_a_listed_origin_may_call(self, allowing: Sidecar, origin: str) -> None:
        preflight = allowing.ask("OPTIONS", "/v1/track/", token=None, Origin=origin, **PREFLIGHT)
        assert (preflight.status, preflight.body) == (204, b"")
        assert preflight.headers["access-control-allow-origin"] == origin
        assert preflight.headers["access-control-allow-headers"] == "anonymousid,authorization,content-type"
        assert "POST" in preflight.headers["access-control-allow-methods"]
        answer = allowing.post("/v1/track", {}, write_key="2abcKEY", Origin=origin)
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, origin)
        assert "origin" in answer.headers["vary"].lower()

    def test_a_page_can_read_why_it_was_refused(self, allowing: Sidecar) -> None:
        for path, status in (("/v1/track", 401), ("/nowhere", 404)):
            answer = allowing.post(path, {}, token=None, Origin=SHOP)
            assert (answer.status, answer.headers["access-control-allow-origin"]) == (status, SHOP)
            assert "X-Request-ID" in answer.headers["access-control-expose-headers"]

    @pytest.mark.parametrize("origin", [OTHER, "null", "https://shop.example.evil", "http://shop.example", f"{SHOP}:444", "*", ""])
    def test_another_origin_may_not(self, allowing: Sidecar, origin: str) -> None:
        preflight = allowing.ask("OPTIONS", "/v1/track", token=None, Origin=origin, **PREFLIGHT)
        assert (preflight.status, preflight.code, allowed(preflight)) == (403, "Forbidden", {})
        assert preflight.json["error"]["request_id"] == preflight.headers["x-request-id"]
        answer = allowing.post("/v1/track", {}, write_key="2abcKEY", Origin=origin)
        assert (answer.status, allowed(answer)) == (200, {}), "CORS tells browsers; the write key is what lets in"

    def test_without_an_origin_nothing_changes(self, allowing: Sidecar) -> None:
        assert allowed(allowing.post("/v1/track", {}, write_key="2abcKEY")) == {}
        assert allowing.ask("OPTIONS", "/v1/track", token=None, Origin=SHOP).status == 405, "no preflight"

    def test_it_is_off_by_default(self, tmp_path: Path) -> None:
        with serve(file_environment(tmp_path), JOBS_BACKUP_SERVER_WRITE_KEYS="2abcKEY") as sidecar:
            preflight = sidecar.ask("OPTIONS", "/v1/track", token=None, Origin=SHOP, **PREFLIGHT)
            assert (preflight.status, allowed(preflight)) == (405, {})
            answer = sidecar.post("/v1/track", {}, write_key="2abcKEY", Origin=SHOP)
            assert (answer.status, allowed(answer), "vary" in answer.headers) == (200, {}, False)

    def test_every_origin(self) -> None:
        origins = Origins("*")
        assert origins.allows("null")
        assert (b"access-control-allow-origin", b"null") in origins.headers("null")
        assert b"access-control-allow-credentials" not in dict(origins.headers(OTHER))

    @pytest.mark.parametrize(
        "setting", ["https://shop.example:443", "HTTPS://Shop.example", f"{SHOP},{OTHER}", f"{OTHER} , {SHOP}/"]
    )
    def test_spellings(self, setting: str) -> None:
        assert Origins(setting).allows(SHOP)

    @pytest.mark.parametrize(
        "setting",
        ["shop.example", "https://", "https://a/b", "ftp://a", "https://*.example", "https://a b", "null", "https://u:p@a"],
    )
    def test_what_is_no_origin_is_reported(self, setting: str) -> None:
        with pytest.raises(ConfigurationError, match="origin 2 of JOBS_BACKUP_SERVER_CORS_ORIGINS") as error:
            Origins(f"{SHOP},{setting}")
        assert setting not in str(error.value), "it may hold a password"

    def test_everybody_without_credentials_is_refused(self, tmp_path: Path) -> None:
        code, _, stderr = run("serve", "--port", "0", env=file_environment(tmp_path, JOBS_BACKUP_SERVER_CORS_ORIGINS="*"))
        assert (code, "JOBS_BACKUP_SERVER_WRITE_KEYS" in stderr) == (2, True)


class TestBeacons:
    @pytest.mark.parametrize("type_", ["text/plain", "text/plain;charset=UTF-8", "application/json", ""])
    def test_the_write_key_is_in_the_url(self, tmp_path: Path, type_: str) -> None:
        with serve(file_environment(tmp_path), JOBS_BACKUP_SERVER_WRITE_KEYS="2abcKEY=web") as sidecar:
            answer = sidecar.post("/beacon/v1/batch/?writeKey=2abcKEY", BATCH, token=None, Content_Type=type_, Origin=OTHER)
            assert (answer.status, len(answer.json["jobs"])) == (200, 2)
            _, stderr = sidecar.end()
        assert [event["messageId"] for event in events(tmp_path)] == ["a", "b"]
        assert [path.relative_to(tmp_path / "bucket").parts[0] for path in tmp_path.rglob("*.json.gz")] == ["web"]
        assert "2abcKEY" not in stderr

    @pytest.mark.parametrize("query", ["", "?writeKey=", "?writeKey=wrong", "?writekey=2abcKEY"])
    def test_without_it_nobody_gets_in(self, allowing: Sidecar, query: str) -> None:
        answer = allowing.post(f"/beacon/v1/batch{query}", BATCH, token=None, Content_Type="text/plain")
        assert (answer.status, answer.code) == (401, "Unauthorized")

    def test_elsewhere_a_key_in_the_url_is_none(self, allowing: Sidecar) -> None:
        assert allowing.post("/v1/batch?writeKey=2abcKEY", BATCH, token=None).status == 401

    def test_a_page_records_nothing_where_nobody_needs_credentials(self, tmp_path: Path) -> None:
        """Any web page in a browser on this machine could send beacons to the loopback."""
        variables = {"JOBS_BACKUP_SERVER_TOKEN": "", "JOBS_BACKUP_SERVER_CORS_ORIGINS": SHOP}
        with serve({**file_environment(tmp_path), **variables}) as sidecar:
            for origin, status in ((OTHER, 403), ("null", 403), (SHOP, 200)):
                answer = sidecar.post("/beacon/v1/batch?writeKey=x", BATCH, token=None, Content_Type="text/plain", Origin=origin)
                assert answer.status == status
            for path in ("/v1/events?source_id=web", "/v1/delivered", "/v1/failures", "/v1/batch"):
                answer = sidecar.post(path, BATCH, token=None, Content_Type="text/plain", Origin=OTHER)
                assert answer.status in (401, 415), "what needs no preflight"
            sidecar.end()
        assert len(events(tmp_path)) == 2


class TestSdkPaths:
    """Requests of RudderStack's and Segment's SDKs, with the content type of their HTTP library."""

    TYPES = ("application/json", "application/json; charset=utf-8", "text/plain", "application/x-www-form-urlencoded", "", "*/*")

    @pytest.mark.parametrize("type_", TYPES)
    @pytest.mark.parametrize("packed", [False, True])
    def test_the_body_is_json(self, allowing: Sidecar, type_: str, packed: bool) -> None:
        for path, body in (
            *((f"/v1/{one}", b'{"messageId":"a"}') for one in ("identify", "track", "page", "screen", "group", "alias", "merge")),
            *((path, BATCH) for path in ("/v1/batch", "/v1/import", "/v1/batch/", "//v1/batch")),
        ):
            data = gzip.compress(body) if packed else body
            coding: dict[str, Any] = {"Content_Encoding": "gzip"} if packed else {}
            answer = allowing.post(path, data, write_key="2abcKEY", Content_Type=type_, AnonymousId="YQ==", **coding)
            assert answer.status == 200, (path, answer.body)

    def test_another_character_set_is_refused(self, allowing: Sidecar) -> None:
        answer = allowing.post("/v1/track", {}, write_key="2abcKEY", Content_Type="text/plain; charset=utf-16")
        assert (answer.status, answer.code) == (415, "UnsupportedType")

    def test_what_is_no_json_is_refused(self, allowing: Sidecar) -> None:
        for path, body in (("/v1/track", b"a=b&c=d"), ("/v1/batch", b"[]"), ("/v1/import", b'{"batch":[1]}')):
            answer = allowing.post(path, body, write_key="2abcKEY", Content_Type="text/plain")
            assert (answer.status, answer.code) == (400, "InvalidEvent")

    @pytest.mark.parametrize("path", ["/pixel/v1/track", "/v1/audiencelist", "/v1/replay", "/v1/webhook", "/sourceConfig"])
    def test_what_is_not_promised_is_not_there(self, allowing: Sidecar, path: str) -> None:
        for answer in (allowing.get(f"{path}?writeKey=2abcKEY", token=None), allowing.post(path, {}, write_key="2abcKEY")):
            assert (answer.status, answer.code) == (404, "NotFound")

    def test_a_method_that_is_none_is_reported(self, allowing: Sidecar) -> None:
        for method in ("GET", "PUT", "DELETE", "PATCH", "TRACE", "FOO"):
            answer = allowing.ask(method, "/v1/track/?a=//b/", write_key="2abcKEY")
            assert (answer.status, answer.headers["allow"], json.loads(answer.body)["error"]["code"]) == (405, "POST", "BadRequest")
