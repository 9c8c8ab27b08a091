"""What every provider must do, as tests: subclass `ProviderConformance`, define two fixtures, and pytest runs all of it.

    class TestMyStore(ProviderConformance):
        provider = "MY_STORE"                       # the entry point's name
        forbidden_modules = ("my_sdk",)             # what must not be imported before the first hook call
        not_applicable = {"test_list_...": "my store has no order"}    # a reason each; shown as skipped

        @pytest.fixture
        def environment(self): ...                  # the variables of an empty bucket with all permissions

        @pytest.fixture
        def inspector(self, environment): ...       # an `Inspector` of the same bucket

The tests call the hooks as core does, by name on a plugin manager of their own, one attempt per call.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import pytest

from jobs_backup.checks.provider import required_settings, shows_secret
from jobs_backup.checksum import crc32c
from jobs_backup.errors import (
    AlreadyExists,
    BucketNotFound,
    ConfigurationError,
    IntegrityError,
    JobsBackupError,
    ObjectNotFound,
    SpoolCorrupt,
    SpoolError,
)
from jobs_backup.hookspecs import API_VERSION, MANDATORY, MULTIPART, OPTIONAL
from jobs_backup.model import Listed
from jobs_backup.store import providers
from jobs_backup.store.plugins import secrets_of, settings_of
from jobs_backup.testing.driver import (
    ODD_KEYS,
    TIMEOUT,
    CountingBody,
    FailingBody,
    Hooks,
    Inspector,
    ShortBody,
    SlowBody,
    WatchedBody,
    random_bytes,
)
from jobs_backup.testing.multipart import MultipartConformance
from jobs_backup.testing.refusals import RefusalConformance, check_no_secret
from jobs_backup.testing.strangers import StrangerConformance

__all__ = ["Hooks", "Inspector", "ProviderConformance"]


class ProviderConformance(MultipartConformance, RefusalConformance, StrangerConformance):
    """The suite. Its tests cannot be overridden: put those that do not apply into `not_applicable`."""

    provider: ClassVar[str]
    """Name of the entry point."""
    forbidden_modules: ClassVar[Sequence[str]] = ()
    """Modules that configuring must not import: the SDK."""
    not_applicable: ClassVar[Mapping[str, str]] = {}
    """A test's name -> why it makes no sense for this store."""

    def __init_subclass__(cls) -> None:
        tests = {name for name in dir(ProviderConformance) if name.startswith("test_")}
        if overridden := tests & cls.__dict__.keys():
            raise TypeError(f"{cls.__name__} overrides {', '.join(sorted(overridden))}: state the reason in not_applicable instead")
        if unknown := cls.not_applicable.keys() - tests:
            raise TypeError(f"{cls.__name__}.not_applicable names no tests: {', '.join(sorted(unknown))}")

    @pytest.fixture
    def environment(self) -> Mapping[str, str]:
        """The variables of an empty bucket, with all permissions on it."""
        raise NotImplementedError("give the fixture `environment`")

    @pytest.fixture
    def inspector(self) -> Inspector:
        """Inspector of the bucket in `environment`."""
        raise NotImplementedError("give the fixture `inspector`")

    @pytest.fixture
    def environment_without_bucket(self) -> Mapping[str, str] | None:
        """The variables of a bucket that does not exist; None if unavailable."""
        return None

    @pytest.fixture(autouse=True)
    def _applicable(self, request: pytest.FixtureRequest) -> None:
        name = getattr(request.node, "originalname", request.node.name)
        if name in self.not_applicable:
            pytest.skip(f"not applicable to {self.provider}: {self.not_applicable[name]}")

    @pytest.fixture
    def hooks(self, environment: Mapping[str, str]) -> Hooks:
        """The provider, freshly loaded."""
        return self.open(environment)

    def open(self, environment: Mapping[str, str]) -> Hooks:
        """Load the provider as core does. Override it for a provider without an entry point."""
        return Hooks(providers.load(self.provider, environment))

    def in_another_process(self, environment: Mapping[str, str], script: str, given: object = None) -> None:
        """Run a script in a new process, with this suite's `hooks`, and `given`, passed as JSON."""
        program = (
            "import json, sys\n"
            "from jobs_backup.store import providers\n"
            "from jobs_backup.testing.driver import Hooks\n"
            "name, environment, given, script = json.load(sys.stdin)\n"
            "exec(script, {'hooks': Hooks(providers.load(name, environment)), 'given': given})\n"
        )
        arguments = json.dumps([self.provider, dict(environment), given, script])
        done = subprocess.run([sys.executable, "-c", program], input=arguments, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def test_form_of_the_contract(self, hooks: Hooks) -> None:
        """The provider states the version of the contract, implements the mandatory hooks, and all multipart hooks or none.

        Core rejects at the start what it could not call later, in the middle of the night.
        """
        assert type(hooks.loaded.provider).API_VERSION == API_VERSION
        assert set(MANDATORY) <= hooks.loaded.hooks
        assert len(hooks.loaded.hooks & set(MULTIPART)) in (0, len(MULTIPART))

    def test_location_names_the_bucket(self, hooks: Hooks, environment: Mapping[str, str]) -> None:
        """The location identifies the bucket: always the same for the same settings, and without a secret.

        Waiting events in the spool belong to a location: if it changes between starts, nothing uploads them.
        """
        location = hooks.loaded.provider.location
        assert location == self.open(environment).loaded.provider.location != ""
        assert shows_secret(hooks.loaded.provider, environment) != "location"

    def test_secrets_are_in_no_repr(self, hooks: Hooks, environment: Mapping[str, str]) -> None:
        """No repr shows a secret: neither the provider's, nor those of its attributes, nor that of its settings.

        A repr gets into logs, tracebacks and error trackers unintentionally.
        """
        provider = hooks.loaded.provider
        settings = settings_of(type(provider))
        more = {"settings": repr(settings.from_environment(environment))} if settings else {}
        assert not shows_secret(provider, environment, str=str(provider), **more)

    def test_configuring_imports_no_sdk(self, environment: Mapping[str, str]) -> None:
        """Loading and configuring the provider imports no SDK: that waits until the first hook call.

        Programs that only record, and `--help`, should not spend seconds and 50 MB on an SDK that they never use.
        """
        script = (
            "import json, sys\n"
            "name, environment, forbidden = json.load(sys.stdin)\n"
            "from jobs_backup.store import providers\n"
            "providers.load(name, environment)\n"
            "print(json.dumps([module for module in forbidden if module in sys.modules]))\n"
        )
        given = json.dumps([self.provider, dict(environment), list(self.forbidden_modules)])
        done = subprocess.run([sys.executable, "-c", script], input=given, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr

    def test_missing_settings_are_named(self, hooks: Hooks) -> None:
        """Without any variable it cannot be configured; the error names what is missing.

        It is the first message that a new user sees.
        """
        with pytest.raises(ConfigurationError, match=r"[A-Z]{3,}_[A-Z]+") as caught:
            type(hooks.loaded.provider).from_settings({})
        assert caught.value.hint

    def test_each_required_setting_is_named(self, hooks: Hooks, environment: Mapping[str, str]) -> None:
        """If one required variable is missing, the error names it.

        A user who has set all but one wants to know which.
        """
        required = required_settings(type(hooks.loaded.provider))
        if not required:
            pytest.skip("the provider's class has no required settings")
        for variable in required:
            rest = {name: value for name, value in environment.items() if name not in (variable.name, *variable.aliases)}
            with pytest.raises(ConfigurationError, match=rf"\b{variable.name}\b"):
                self.open(rest)

    @pytest.mark.parametrize("size", [0, 1, (1 << 17) - 1, 1 << 17, (1 << 17) + 1, (3 << 20) + 7])
    def test_write(self, hooks: Hooks, inspector: Inspector, size: int) -> None:
        """The bucket has the written bytes, exactly, and nothing else.

        These sizes are on the boundaries of buffers, blocks and an SDK's own thresholds.
        """
        data = random_bytes(size, 1)
        hooks.write("a/b/object.json.gz", data)
        assert list(inspector.keys()) == ["a/b/object.json.gz"]
        assert inspector.get("a/b/object.json.gz") == data

    @pytest.mark.parametrize("less", [1, 0])
    def test_write_of_the_largest(self, hooks: Hooks, inspector: Inspector, less: int) -> None:
        """An object of `max_write_size` is uploaded in one request.

        Core uploads larger objects in parts, and relies on this exact size not being too large.
        """
        size = getattr(hooks.loaded.provider, "max_write_size", None)
        if size is None:
            pytest.skip("the provider states no max_write_size")
        data = random_bytes(size - less, 6)
        hooks.write("key", data)
        assert inspector.get("key") == data

    @pytest.mark.parametrize("key", ODD_KEYS, ids=range(len(ODD_KEYS)))
    def test_write_and_delete_odd_keys(self, hooks: Hooks, inspector: Inspector, key: str) -> None:
        """A key is any text; the object has exactly this key, and is deleted under it.

        Keys contain ids of sources and workspaces, whatever people call them; URLs and XML each need their own escaping.
        """
        hooks.write(key, b"odd")
        assert list(inspector.keys()) == [key]
        assert inspector.get(key) == b"odd"
        assert hooks.delete([key]).deleted == {key}
        assert list(inspector.keys()) == []

    def test_write_to_an_existing_key(self, hooks: Hooks, inspector: Inspector) -> None:
        """With `if_absent`, a second write is refused, and the first object stays. A provider that notices other bytes may say so.

        After a lost answer, core writes again. If that overwrites, a late request can bring back a deleted object.
        """
        hooks.write("key", b"first")
        with pytest.raises(AlreadyExists):
            hooks.write("key", b"first")
        with pytest.raises((AlreadyExists, IntegrityError)):
            hooks.write("key", b"second")
        assert inspector.get("key") == b"first"

    def test_write_without_condition(self, hooks: Hooks, inspector: Inspector) -> None:
        """Without `if_absent`, the same bytes can be written again.

        JOBS_BACKUP_CONDITIONAL_WRITES=false is for stores without conditional writes: there, each retry overwrites.
        """
        hooks.write("key", b"same", if_absent=False)
        hooks.write("key", b"same", if_absent=False)
        assert inspector.get("key") == b"same"

    def test_body_is_opened_anew_and_closed(self, hooks: Hooks, inspector: Inspector) -> None:
        """Each attempt, even a failed one, opens its own reader and closes it; and a call is one attempt.

        A reader left half read by an earlier attempt yields half an object; unclosed readers keep files of the spool open.
        """
        data = random_bytes(100_000, 2)
        checksum = crc32c(data)  # passed in, because computing it also opens the body
        body = CountingBody(data)
        hooks.write("key", body, checksum=checksum)
        after_first = body.opened
        with pytest.raises(AlreadyExists):
            hooks.write("key", body, checksum=checksum)
        assert 0 < body.opened - after_first <= after_first, "it must not retry by itself"
        assert body.unclosed == 0
        assert inspector.get("key") == data

    def test_it_appears_whole(self, hooks: Hooks, inspector: Inspector) -> None:
        """While bytes are still arriving, no object has the key, or it is the one that was there before.

        Anybody who lists or reads at that moment would take the beginning for the whole.
        """
        data = random_bytes((1 << 20) + 1, 8)
        checksum = crc32c(data)  # passed in, because computing it also opens the body
        seen: list[object] = []
        hooks.write("key", WatchedBody(data, lambda: seen.append(list(inspector.keys()))), checksum=checksum)
        assert seen == [[]], "an object was visible while bytes of it were still to come"
        again = WatchedBody(data, lambda: seen.append(inspector.get("key") == data))
        hooks.write("key", again, checksum=checksum, if_absent=False)
        assert seen == [[], True], "the existing object disappeared or changed while bytes of the new one were still to come"

    @pytest.mark.parametrize("error", [SpoolCorrupt, OSError])
    def test_failing_body_publishes_nothing(self, hooks: Hooks, inspector: Inspector, error: type[Exception]) -> None:
        """If the body cannot be read to its end, no object appears, and the error is the body's, not the store's.

        Everybody would take half an object under its final key for the whole one, and core must know that the disk is at fault.
        """
        with pytest.raises((error, SpoolError), match="bad sector"):
            hooks.write("key", FailingBody(random_bytes(300_000, 3), error), checksum=0)
        assert list(inspector.keys()) == []

    def test_short_body_publishes_nothing(self, hooks: Hooks, inspector: Inspector) -> None:
        """If the body ends before its size, no object appears.

        As above; and a store that waits for the rest must not look slow.
        """
        body = ShortBody(random_bytes(300_000, 4))
        for checksum in (body.crc32c(), 0):
            with pytest.raises(JobsBackupError):
                hooks.write("key", body, checksum=checksum)
            assert list(inspector.keys()) == []

    def test_reads_may_be_short(self, hooks: Hooks, inspector: Inspector) -> None:
        """`read(n)` may return fewer than n bytes; the body ends only when it returns none. `read()` returns everything.

        A provider that takes a short read for the end uploads only the beginning. `jobs_backup.bodies.Source` returns as much as
        requested.
        """
        data = random_bytes(30_000, 9)
        hooks.write("key", SlowBody(data), checksum=crc32c(data))
        assert inspector.get("key") == data

    def test_wrong_checksum_publishes_nothing(self, hooks: Hooks, inspector: Inspector) -> None:
        """If the bytes do not match the checksum, no object appears.

        Bytes change on disks, in memory and in proxies: this is the last place to detect it.
        """
        with pytest.raises(IntegrityError):
            hooks.write("key", b"123456789", checksum=0xE3069284)
        assert list(inspector.keys()) == []
        hooks.write("key", b"123456789", checksum=0xE3069283)
        assert inspector.get("key") == b"123456789"

    def test_many_threads(self, hooks: Hooks, inspector: Inspector) -> None:
        """One instance is called from many threads at once, from the first call on.

        Core uploads several objects and several parts concurrently. Clients that are made twice, or shared without a lock, show up
        here.
        """
        start = threading.Barrier(16)

        def write(number: int) -> None:
            if number < 16:
                start.wait(TIMEOUT)
            hooks.write(f"key-{number}", b"%d" % number)

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(write, range(64)))
        assert sorted(inspector.keys()) == sorted(f"key-{number}" for number in range(64))
        assert inspector.get("key-63") == b"63"

    def test_a_fork_gets_its_own(self, environment: Mapping[str, str], inspector: Inspector) -> None:
        """A child of fork(2) can use what it inherited, without disturbing its parent.

        Servers fork after importing everything. A lock that another thread held at that moment is never released in the child.
        (That each process has its own connections cannot be tested here: two processes on one mix up their answers.)
        """
        script = (
            "import os\n"
            "hooks.write('parent', b'1')\n"
            "if not (child := os.fork()):\n"
            "    try:\n"
            "        hooks.write('child', b'2')\n"
            "    finally:\n"
            "        os._exit(0)\n"
            "os.waitpid(child, 0)\n"
            "hooks.write('parent again', b'3')\n"
        )
        self.in_another_process(environment, script)
        assert sorted(inspector.keys()) == ["child", "parent", "parent again"]

    def test_bucket_that_does_not_exist(
        self, environment: Mapping[str, str], environment_without_bucket: Mapping[str, str] | None
    ) -> None:
        """A missing bucket is an error with a hint, and is not created.

        A bucket created by accident costs money, or puts data into the wrong account.
        """
        if environment_without_bucket is None:
            pytest.skip("no bucket that does not exist was provided")
        hooks = self.open(environment_without_bucket)
        assert hooks.loaded.provider.location != self.open(environment).loaded.provider.location
        for _ in range(2):
            with pytest.raises(BucketNotFound) as caught:
                hooks.write("key", b"data")
            assert caught.value.hint
            assert not caught.value.retryable

    def test_delete(self, hooks: Hooks, inspector: Inspector) -> None:
        """A key that did not exist counts as deleted; others stay.

        After a lost answer, core deletes again: an object that is already deleted is what core wants.
        """
        for key in ("one", "two", "three"):
            hooks.write(key, b"data")
        assert hooks.delete(["one", "absent", "two"]).deleted == {"one", "absent", "two"}
        assert list(inspector.keys()) == ["three"]
        assert hooks.delete([]).deleted == frozenset()
        assert list(inspector.keys()) == ["three"]

    def test_delete_thousands(self, hooks: Hooks, inspector: Inspector) -> None:
        """Up to 1,000 keys are deleted in one call.

        Core groups deletes. Stores have limits of their own, and answers that cover only some keys.
        """
        keys = [f"dir/key-{number:04}" for number in range(1300)]
        hooks.write_many(keys[::50])
        assert hooks.delete(keys[:1000]).deleted == set(keys[:1000])
        assert sorted(inspector.keys()) == keys[1000::50]
        assert hooks.delete(keys[1000:]).deleted == set(keys[1000:])
        assert list(inspector.keys()) == []

    def test_read(self, hooks: Hooks) -> None:
        """A read body can be reopened, seeked and sliced, like core's bodies.

        `replay` verifies before it writes a line, and wrappers read from the middle.
        """
        _need(hooks, "read")
        data = random_bytes((2 << 20) + 5, 5)
        hooks.write("key", data)
        body = hooks.read("key")
        assert body.size == len(data)
        for _ in range(2):
            with body.open() as reader:
                assert reader.read() == data
        with body.open() as reader:
            assert reader.seek(len(data) - 3) == len(data) - 3
            assert reader.read() == data[-3:]
            reader.seek(7)
            assert reader.read(5) == data[7:12]
        with body.slice(1 << 20, 1000).open() as reader:
            assert reader.read() == data[1 << 20 :][:1000]
        assert body.crc32c() == crc32c(data)

    def test_read_empty_and_absent(self, hooks: Hooks) -> None:
        """An empty object is not a missing one.

        Empty ranges are an error on some stores: it must not look like a lost object.
        """
        _need(hooks, "read")
        hooks.write("empty", b"")
        with hooks.read("empty").open() as reader:
            assert reader.read() == b""
        with pytest.raises(ObjectNotFound):
            hooks.read("absent")

    def test_list_in_pages(self, hooks: Hooks) -> None:
        """All keys with the prefix are listed, in order, each once, after `after`.

        `replay --list` reads in this order; a key skipped at the end of a page is an event that never comes back.
        """
        _need(hooks, "list")
        keys = sorted([f"in/{number:04}" for number in range(1050)] + ["in/ünï", "in/a b+c%"], key=str.encode)
        hooks.write_many([*keys, "out/1", "inn"])
        found: list[Listed] = []
        after: str | None = ""
        while after is not None:
            page = hooks.list("in/", after)
            found += page.objects
            assert page.after is None or page.after > after, f"the page after {after!r} says that the next is after {page.after!r}"
            assert len(found) <= len(keys), f"the page after {after!r} has objects that were returned before"
            after = page.after
        assert [one.key for one in found] == keys
        assert [one.size for one in found] == [len(key.encode()) for key in keys]
        assert [one.key for one in hooks.list("in/", keys[1048]).objects] == keys[1049:]
        assert hooks.list("nothing/").objects == []

    def test_policy(self, hooks: Hooks, environment: Mapping[str, str]) -> None:
        """The policy is for this bucket, shows no secret, and needs more for deleting and for reading back than for writing.

        It is what owners paste into their cloud: too little stops the backup, too much is an unnecessary risk.
        """
        _need(hooks, "policy")
        least = hooks.policy(environment, delete=False, replay=False)
        most = hooks.policy(environment, delete=True, replay=True)
        assert environment["JOBS_BACKUP_BUCKET"] in least.text
        assert {"write"} <= least.grants.keys() <= most.grants.keys() <= {*MANDATORY, *MULTIPART, *OPTIONAL}
        for one, needed in (("delete", {"delete"}), ("replay", {"read", "list"})):
            more = hooks.policy(environment, delete=one == "delete", replay=one == "replay")
            assert needed <= more.grants.keys(), f"its grants do not say what {one} needs"
            if set(more.grants.values()) != set(least.grants.values()):
                assert more.text != least.text, f"{one} needs further permissions, but the text is the same"
        check_no_secret(self.secrets(hooks, environment), [], most.text)

    def secrets(self, hooks: Hooks, environment: Mapping[str, str]) -> list[str]:
        """The values of the secret settings that are set."""
        return [secret.reveal() for secret in secrets_of(type(hooks.loaded.provider), environment)]


def _need(hooks: Hooks, *names: str) -> None:
    if missing := [name for name in names if name not in hooks.loaded.hooks]:
        pytest.skip(f"{hooks.loaded.installed.name} does not implement {', '.join(missing)}")
