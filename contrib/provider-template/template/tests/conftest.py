"""The store that the tests talk to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from toy_store import ToyStore

# So that a failed assertion of the conformance suite shows what it has compared.
pytest.register_assert_rewrite("jobs_backup.testing")


@pytest.fixture(scope="session")
def store() -> Iterator[ToyStore]:
    """One for all tests, each of which has a bucket of its own."""
    with ToyStore() as running:
        yield running


@pytest.fixture
def bucket(store: ToyStore) -> str:
    """A new one, empty."""
    return store.bucket()
