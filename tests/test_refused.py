"""A 403 is a missing permission only if its code says so: every provider, every code, at a scripted HTTP server."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from refused import STORES, Refusal, store_that_refuses

from jobs_backup.errors import JobsBackupError, PermissionDenied

Met = Callable[[Refusal], JobsBackupError]


@pytest.fixture(scope="module", params=STORES)
def store(request: pytest.FixtureRequest) -> Iterator[tuple[str, Met]]:
    """A provider's name, and what it makes of a refusal."""
    with store_that_refuses(request.param) as met:
        yield request.param, met


def test_each_refusal_has_the_hint_for_what_it_says(store: tuple[str, Met]) -> None:
    name, met = store
    for refusal in STORES[name].refusals:
        error = met(refusal)
        assert type(error) is refusal.error, error.one_line()
        assert refusal.hint in error.hint, error.one_line()
        assert refusal.code in str(error)
        if refusal.error is not PermissionDenied or "grant" not in refusal.hint:
            assert not error.hint.startswith("grant"), error.one_line()
