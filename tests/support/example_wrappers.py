"""Wrappers for tests: some record every call, some change bytes, some fail."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Self

from jobs_backup.errors import IntegrityError
from jobs_backup.hookspecs import hookimpl
from jobs_backup.model import Batch, Body, BytesBody
from jobs_backup.settings import Secret, Settings, Variable

SEEN: list[str] = []
"""The calls, in order: `NAME HOOK begin`, `NAME HOOK end` or `NAME HOOK ErrorName`."""


class Seeing:
    """Sees every hook."""

    API_VERSION: ClassVar[int] = 1
    name: ClassVar[str]

    @classmethod
    def from_settings(cls, environment: Mapping[str, str]) -> Self:
        return cls()

    @contextmanager
    def _seen(self, hook: str) -> Iterator[None]:
        SEEN.append(f"{self.name} {hook} begin")
        try:
            yield
        except Exception as error:
            SEEN.append(f"{self.name} {hook} {type(error).__name__}")
            raise
        SEEN.append(f"{self.name} {hook} end")

    @hookimpl(wrapper=True)
    def write(self) -> Generator[None, Any, Any]:
        with self._seen("write"):
            return (yield)

    @hookimpl(wrapper=True)
    def delete(self) -> Generator[None, Any, Any]:
        with self._seen("delete"):
            return (yield)

    @hookimpl(wrapper=True)
    def read(self) -> Generator[None, Any, Any]:
        with self._seen("read"):
            return (yield)

    @hookimpl(wrapper=True)
    def open_body(self) -> Generator[None, Any, Any]:
        with self._seen("open_body"):
            return (yield)


class First(Seeing):
    name = "first"


class Second(Seeing):
    name = "second"


class Changing:
    """Puts `<FORMAT PARAMETER>` before the bytes and `</FORMAT>` after them."""

    API_VERSION: ClassVar[int] = 1
    format: ClassVar[str]
    parameter = ""

    @classmethod
    def from_settings(cls, environment: Mapping[str, str]) -> Self:
        made = cls()
        made.parameter = environment.get(f"{cls.format.upper()}_PARAMETER", "")
        return made

    @hookimpl(wrapper=True)
    def open_body(self, batch: Batch) -> Generator[None, Body, Body]:
        body = yield
        return BytesBody(self._start(batch.parameter_of(self.format)) + _bytes(body) + self._end)

    @hookimpl(wrapper=True)
    def read(self, key: str) -> Generator[None, Body, Body]:
        data = _bytes((yield))
        if not data.startswith(self._start("")[:-1]) or not data.endswith(self._end):
            raise IntegrityError(f"{key} is not <{self.format}>")
        return BytesBody(data[data.index(b">") + 1 : -len(self._end)])

    def _start(self, parameter: str) -> bytes:
        return f"<{self.format} {parameter}>".encode()

    @property
    def _end(self) -> bytes:
        return f"</{self.format}>".encode()


class InnerSettings(Settings, frozen=True, kw_only=True):
    key: Annotated[Secret | None, Variable("JOBS_BACKUP_INNER_KEY", "A key.")] = None


class Inner(Changing):
    format = "xa"
    settings = InnerSettings


class Outer(Changing):
    format = "xb"


class Meddling:
    """Changes bytes without reporting it."""

    API_VERSION: ClassVar[int] = 1

    @classmethod
    def from_settings(cls, environment: Mapping[str, str]) -> Self:
        return cls()

    @hookimpl(wrapper=True)
    def open_body(self) -> Generator[None, Body, Body]:
        body = yield
        return BytesBody(_bytes(body)[:-1] + b"!")


class Failing:
    """Raises the errors in `before` and `after` (of `create_multipart`, too), one per call of `write`; `opening` at `open_body`."""

    API_VERSION: ClassVar[int] = 1
    before: ClassVar[list[Exception]] = []
    after: ClassVar[list[Exception]] = []
    opening: ClassVar[list[Exception]] = []

    @classmethod
    def from_settings(cls, environment: Mapping[str, str]) -> Self:
        return cls()

    @hookimpl(wrapper=True)
    def write(self) -> Generator[None, Any, Any]:
        if self.before:
            raise self.before.pop(0)
        receipt = yield
        if self.after:
            raise self.after.pop(0)
        return receipt

    @hookimpl(wrapper=True)
    def create_multipart(self) -> Generator[None, Any, Any]:
        receipt = yield
        if self.after:
            raise self.after.pop(0)
        return receipt

    @hookimpl(wrapper=True)
    def open_body(self) -> Generator[None, Any, Any]:
        if self.opening:
            raise self.opening.pop(0)
        return (yield)


class Forgetting:
    """Returns None instead of the receipt."""

    API_VERSION: ClassVar[int] = 1

    @classmethod
    def from_settings(cls, environment: Mapping[str, str]) -> Self:
        return cls()

    @hookimpl(wrapper=True)
    def write(self) -> Generator[None, Any, None]:
        yield

    @hookimpl(wrapper=True)
    def create_multipart(self) -> Generator[None, Any, None]:
        yield


def _bytes(body: Body) -> bytes:
    with body.open() as reader:
        return reader.read()
