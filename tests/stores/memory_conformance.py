"""The conformance suite on MemoryProvider and on faulty ones: run by test_conformance_teeth, not collected by itself."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import ClassVar

import pytest
import web_memory
import wrong_providers

from jobs_backup.testing.conformance import Hooks, Inspector, ProviderConformance
from jobs_backup.testing.memory import MemoryProvider, loaded
from jobs_backup.testing.strangers import StrangerConformance

_numbers = itertools.count(1)
ONE_PROCESS = "what is in memory is in one process"


class Right(ProviderConformance):
    """MemoryProvider, unchanged."""

    provider = "MEMORY"
    class_: ClassVar[type[MemoryProvider]] = MemoryProvider
    not_applicable: ClassVar = {
        "test_configuring_imports_no_sdk": "no entry point names it",
        "test_abort_in_another_process": ONE_PROCESS,
        "test_a_fork_gets_its_own": ONE_PROCESS,
    }

    def open(self, environment: Mapping[str, str]) -> Hooks:
        return Hooks(loaded(self.class_, environment))

    @pytest.fixture
    def environment(self) -> Mapping[str, str]:
        name = f"bucket-{next(_numbers)}"
        MemoryProvider.buckets[name] = {}
        return {"JOBS_BACKUP_BUCKET": name, "MEMORY_TOKEN": "a-canary-of-a-token"}

    @pytest.fixture
    def environment_without_bucket(self) -> Mapping[str, str]:
        return {"JOBS_BACKUP_BUCKET": f"none-{next(_numbers)}"}

    @pytest.fixture
    def inspector(self, environment: Mapping[str, str]) -> Inspector:
        return _MemoryInspector(environment["JOBS_BACKUP_BUCKET"])


class _MemoryInspector:
    def __init__(self, bucket: str) -> None:
        self._bucket = bucket

    def keys(self) -> list[str]:
        return list(MemoryProvider.buckets[self._bucket])

    def get(self, key: str) -> bytes:
        return MemoryProvider.buckets[self._bucket][key]

    def open_uploads(self) -> list[str]:
        return [one.key for one in MemoryProvider.uploads.values() if one.bucket == self._bucket]


class TestMemory(Right):
    pass


class OnTheWeb(Right):
    """WebMemory, at another URL if the test asks for one."""

    class_ = web_memory.WebMemory

    @pytest.fixture
    def environment_at(self, environment: Mapping[str, str]) -> Callable[[str], Mapping[str, str]]:
        return lambda url: {**environment, "MEMORY_URL": url}


class TestWebMemory(OnTheWeb):
    pass


class OnlyStrangers(OnTheWeb):
    """For faulty ones: their other hooks are correct, and would be tested once for each of them."""

    not_applicable: ClassVar = {
        name: "it is right in this" for name in dir(Right) if name.startswith("test_") and name not in vars(StrangerConformance)
    }


for _base, _wrongs in ((Right, wrong_providers.EXPECTED), (OnlyStrangers, web_memory.EXPECTED)):
    for _wrong in _wrongs:
        globals()[f"Test{_wrong.__name__}"] = type(f"Test{_wrong.__name__}", (_base,), {"class_": _wrong})
