"""A 403 is a missing permission only if its code says so: every provider and every code, at a scripted HTTP server."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from refused import STORES, Refusal, store_that_refuses
from unreachable import variables

from jobs_backup.errors import ConfigurationError, JobsBackupError, PermissionDenied
from jobs_backup.model import BytesBody
from jobs_backup.store import providers
from jobs_backup.testing.driver import Hooks
from jobs_backup.testing.fault_proxy import Answer, FaultProxy

Met = Callable[[Refusal], JobsBackupError]


@pytest.fixture(scope="module", params=STORES)
def store(request: pytest.FixtureRequest) -> Iterator[tuple[str, Met]]:
    """A provider's name, and its error for a refusal."""
    with store_that_refuses(request.param) as met:
        yield request.param, met


def test_each_refusal_has_the_hint_for_what_it_says(store: tuple[str, Met]) -> None:
    name, met = store
    for refusal in STORES[name].refusals:
        error = met(refusal)
        assert type(error) is refusal.error, error.one_line()
        assert refusal.hint in error.hint, error.one_line()
        assert refusal.code in str(error)
        assert ".: " not in error.one_line(), error.one_line()
        if refusal.error is not PermissionDenied or "grant" not in refusal.hint:
            assert not error.hint.startswith("grant"), error.one_line()


# Redirects: never followed, since the body and its signature are for one host

ENDPOINTS = {
    "S3": "AWS_ENDPOINT_URL_S3",
    "MINIO": "MINIO_ENDPOINT",
    "DIGITAL_OCEAN_SPACES": "DO_SPACES_ENDPOINT",
    "GCS": "STORAGE_EMULATOR_HOST",
    "AZURE_BLOB": "AZURE_STORAGE_BLOB_ENDPOINT",
}
ELSEWHERE = "https://me:canary@other.example:9443/my-events/k?sig=canary"


@pytest.mark.parametrize("name", STORES)
def test_a_redirect_names_the_host_and_the_setting_that_has_the_endpoint(name: str) -> None:
    with FaultProxy() as server:
        hooks = Hooks(providers.load(name, variables(name, server.url)))
        for status in (301, 302, 307, 308):
            server.fail(Answer(status, b"<html>moved</html>", {"Location": ELSEWHERE}))
            with pytest.raises(ConfigurationError) as caught:
                hooks.write("key", BytesBody(b"data"))
            assert (
                f"redirected to https://other.example:9443: if https://other.example:9443 is the store, set {ENDPOINTS[name]}"
                in (caught.value.one_line())
            )
            assert "canary" not in caught.value.one_line()
        for location in ("/login?next=/", ""):
            server.fail(Answer(307, b"<html>log in</html>", {"Location": location}))
            with pytest.raises(ConfigurationError, match=r": 307(\n|$)") as caught:
                hooks.write("key", BytesBody(b"data"))
            assert "login page" in caught.value.hint
            assert ENDPOINTS[name] in caught.value.hint
        assert len(server.requests) == 6


@pytest.mark.parametrize("code", ["PermanentRedirect", "TemporaryRedirect"])
@pytest.mark.parametrize("name", ["S3", "MINIO", "DIGITAL_OCEAN_SPACES"])
def test_the_host_that_s3_names_in_its_own_words(name: str, code: str) -> None:
    body = f"<Error><Code>{code}</Code><Message>elsewhere</Message><Endpoint>my-events.s3.eu-west-1.example</Endpoint></Error>"
    with FaultProxy() as server:
        hooks = Hooks(providers.load(name, variables(name, server.url)))
        server.fail(Answer(301 if code.startswith("P") else 307, body.encode()))
        with pytest.raises(ConfigurationError) as caught:
            hooks.write("key", BytesBody(b"data"))
        hint = f"set {ENDPOINTS[name]} to the endpoint of the bucket's region: the store names my-events.s3.eu-west-1.example"
        assert caught.value.hint == hint
        server.fail(Answer(301, body.encode(), {"x-amz-bucket-region": "eu-west-1"}), times=2)
        with pytest.raises(ConfigurationError, match="the bucket is in eu-west-1") as caught:
            hooks.write("key", BytesBody(b"data"))
        expected = "set AWS_REGION=eu-west-1" if name == "S3" else f"set {ENDPOINTS[name]} to the one of eu-west-1"
        assert caught.value.hint == expected
