"""Fixtures of the tests that damage a spool."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from wrecks import Wreck


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Wreck:
    return Wreck(tmp_path_factory.mktemp("wreck"))


@pytest.fixture
def wreck(made: Wreck) -> Iterator[Wreck]:
    made.restore()
    yield made
    shutil.rmtree(made.directory)
