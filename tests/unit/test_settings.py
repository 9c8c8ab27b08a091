"""Settings: the environment becomes a frozen Struct, or a single error that names everything wrong with it."""

from __future__ import annotations

import contextlib
import copy
import logging
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs_backup.errors import ConfigurationError
from jobs_backup.settings import Duration, Endpoint, Secret, Settings, Size, Variable, shown
from jobs_backup.settings.base import oddity_of, report_unknown, warn_of_oddity
from jobs_backup.settings.core import CoreSettings
from jobs_backup.store.providers import load_class
from jobs_backup.store.wrappers import Wrappers

CANARY = "canary-7f3a"


class Example(Settings, frozen=True, kw_only=True):
    name: Annotated[str, Variable("EX_NAME", "A text.", aliases=("EX_OLD_NAME",))]
    key: Annotated[Secret | None, Variable("EX_KEY", "A secret.")] = None
    flag: Annotated[bool, Variable("EX_FLAG", "On or off.")] = False
    maybe: Annotated[bool | None, Variable("EX_MAYBE", "On, off or not set.")] = None
    count: Annotated[int, msgspec.Meta(ge=1, le=9), Variable("EX_COUNT", "A number.")] = 3
    ratio: Annotated[float, Variable("EX_RATIO", "A ratio.")] = 0.5
    wait: Annotated[Duration, Variable("EX_WAIT", "A time.")] = Duration(90)
    size: Annotated[Size | None, Variable("EX_SIZE", "A size.")] = None
    path: Annotated[Path | None, Variable("EX_PATH", "A path.")] = None
    url: Annotated[Endpoint | None, Variable("EX_URL", "A server.")] = None
    mode: Annotated[Literal["fast", "safe"], Variable("EX_MODE", "Which way.")] = "safe"


def read(**variables: str) -> Example:
    return Example.from_environment({"EX_NAME": "n", **variables})


def error_of(function: Callable[[], object]) -> str:
    with pytest.raises(ConfigurationError) as caught:
        function()
    return str(caught.value)


def test_defaults_and_values() -> None:
    assert read() == Example(name="n")
    everything = read(
        EX_KEY="k",
        EX_FLAG="true",
        EX_MAYBE="0",
        EX_COUNT="9",
        EX_RATIO="0.25",
        EX_WAIT="1.5m",
        EX_SIZE="64MiB",
        EX_PATH="/p/q",
        EX_URL="https://h:1/p/",
        EX_MODE="fast",
    )
    assert everything == Example(
        name="n", key=Secret("k"), flag=True, maybe=False, count=9, ratio=0.25, wait=Duration(90), size=Size(67108864),
        path=Path("/p/q"), url=Endpoint("https://h:1/p"), mode="fast",
    )  # fmt: skip


def test_settings_can_not_be_changed() -> None:
    with pytest.raises(AttributeError):
        read().count = 4  # type: ignore[misc]


@pytest.mark.parametrize("text", ["1", "true", "True", "TRUE", "yes", "on", "On"])
def test_true(text: str) -> None:
    assert read(EX_FLAG=text, EX_MAYBE=text) == read(EX_FLAG="true", EX_MAYBE="true")
    assert read(EX_FLAG=text).flag is True


@pytest.mark.parametrize("text", ["0", "false", "False", "no", "off", "OFF"])
def test_false(text: str) -> None:
    assert read(EX_MAYBE=text).maybe is False


def test_words_for_true_stay_words_in_other_settings() -> None:
    assert read(EX_NAME="yes").name == "yes"
    assert read(EX_NAME="null").name == "null"


@pytest.mark.parametrize("text", ["", " ", "\t"])
def test_an_empty_variable_counts_as_not_set(text: str) -> None:
    assert read(EX_COUNT=text, EX_PATH=text, EX_MODE=text) == read()
    assert "EX_NAME is not set" in error_of(lambda: Example.from_environment({"EX_NAME": text}))


def test_white_space_around_a_value_is_dropped() -> None:
    assert read(EX_NAME=" a b \t", EX_COUNT=" 4 ") == Example(name="a b", count=4)


@pytest.mark.parametrize(
    ("variable", "text", "expected"),
    [
        ("EX_FLAG", "maybe", "expected true or false"),
        ("EX_MAYBE", "2", "expected true or false"),
        ("EX_MAYBE", "null", "expected true or false"),
        ("EX_SIZE", "null", "expected a size"),
        ("EX_COUNT", "many", "expected a whole number"),
        ("EX_COUNT", "1.5", "expected a whole number"),
        ("EX_COUNT", "0", ">= 1"),
        ("EX_COUNT", "10", "<= 9"),
        ("EX_RATIO", "half", "expected a number"),
        ("EX_WAIT", "5 parsecs", "expected a duration such as 500ms, 30s or 5m"),
        ("EX_WAIT", "-5s", "expected a duration"),
        ("EX_WAIT", "nan", "expected a duration"),
        ("EX_SIZE", "1XB", "expected a size such as 64MiB or 1GB"),
        ("EX_SIZE", "MiB", "expected a size"),
        ("EX_PATH", "~no-such-user-here/x", "no home directory"),
        ("EX_MODE", "slow", "expected one of fast, safe"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(variable: str, text: str, expected: str) -> None:
    message = error_of(lambda: read(**{variable: text}))
    assert message.startswith(f"{variable}={text!r}: ")
    assert expected in message
    assert "`" not in message.replace("`int`", "").replace("`~`", "")


def test_a_text_may_be_null() -> None:
    found = read(EX_NAME="null", EX_KEY="NULL", EX_PATH="null")
    assert (found.name, found.key, found.path) == ("null", Secret("NULL"), Path("null"))


@pytest.mark.parametrize("variable", ["EX_COUNT", "EX_URL", "EX_MODE", "EX_PATH", "EX_NAME"])
def test_what_no_environment_can_hold_is_an_error(variable: str) -> None:
    """Environments given from Python may."""
    assert variable in error_of(lambda: read(**{variable: "\ud83d"}))


@pytest.mark.parametrize("variable", ["EX_COUNT", "EX_WAIT", "EX_MODE", "EX_URL"])
def test_a_message_does_not_repeat_a_long_value(variable: str) -> None:
    assert len(error_of(lambda: read(**{variable: "slow " * 20_000}))) < 500
    assert len(shown("slow " * 20_000)) < 100


def test_a_plugin_that_is_not_installed_is_named_with_its_setting() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_class("nothing")
    assert "JOBS_BACKUP_STORAGE_PROVIDER" in caught.value.one_line()
    with pytest.raises(ConfigurationError) as caught:
        Wrappers.from_settings("nothing", {})
    assert "JOBS_BACKUP_WRAPPERS" in caught.value.one_line()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("host:9000", "expected a URL such as https://host"),
        ("//host", "expected a URL such as https://host"),
        ("ftp://host", "expected a URL such as https://host"),
        ("https://", "expected a URL such as https://host"),
        ("https://host:0", "expected a URL such as https://host"),
        ("https://host:99999", "expected a URL such as https://host"),
        ("https://[", "expected a URL such as https://host"),
        ("https://a canary", "expected a URL such as https://host"),
        ("https://me:canary@host", "nothing but host, port and path"),
        ("https://@host", "nothing but host, port and path"),
        ("https://me:12/canary@host", "nothing but host, port and path"),
        ("https://host/me:canary@x", "nothing but host, port and path"),
        ("https://host?", "nothing but host, port and path"),
        ("https://host:", "expected a URL such as https://host"),
        ("https://a..b", "expected a URL such as https://host"),
        ("https://.", "expected a URL such as https://host"),
        ("http://[::1]x:80", "expected a URL such as https://host"),
        ("http://[::1", "expected a URL such as https://host"),
        ("https://host/a canary", "expected a URL such as https://host"),
        ("https://host/canar\u00fd", "expected a URL such as https://host"),
        ("https://host:\uff18\uff10", "expected a URL such as https://host"),
        ("https://host?sig=canary", "nothing but host, port and path"),
        ("https://host/#canary", "nothing but host, port and path"),
    ],
)
def test_what_is_no_endpoint_is_not_shown(text: str, expected: str) -> None:
    message = error_of(lambda: read(EX_URL=text))
    assert message.startswith("EX_URL: ")
    assert expected in message
    assert "canary" not in message


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://host/", "https://host"),
        ("HTTP://Host:80//", "http://Host:80"),
        ("http://[::1]:8333/a/b/", "http://[::1]:8333/a/b"),
    ],
)
def test_endpoints_are_the_same_however_they_end(text: str, url: str) -> None:
    assert read(EX_URL=text).url == url


def test_everything_wrong_is_reported_at_once() -> None:
    message = error_of(lambda: Example.from_environment({"EX_COUNT": "x", "EX_MODE": "y"}))
    assert [part.split(":")[0].split(" ")[0] for part in message.split("; ")] == ["EX_NAME", "EX_COUNT='x'", "EX_MODE='y'"]


def test_a_missing_variable_points_at_one_that_nearly_is_it() -> None:
    message = error_of(lambda: CoreSettings.from_environment({"JOBS_BACKUP_STORAGE_PROVDER": "S3"}))
    assert message == "JOBS_BACKUP_STORAGE_PROVIDER is not set (but JOBS_BACKUP_STORAGE_PROVDER is: a typo?)"
    unrelated = error_of(lambda: CoreSettings.from_environment({"PATH": "/bin"}))
    assert unrelated == "JOBS_BACKUP_STORAGE_PROVIDER is not set"


def test_an_old_name_is_accepted_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert Example.from_environment({"EX_OLD_NAME": "old"}).name == "old"
    assert caplog.messages == ["EX_OLD_NAME is an old name: use EX_NAME"]


def test_the_name_wins_over_an_old_name(caplog: pytest.LogCaptureFixture) -> None:
    assert Example.from_environment({"EX_OLD_NAME": "old", "EX_NAME": "new"}).name == "new"
    assert not caplog.messages


def test_describe_reports_every_setting_in_order() -> None:
    settings = list(Example.describe())
    assert [setting.variable.name for setting in settings] == [
        "EX_NAME", "EX_KEY", "EX_FLAG", "EX_MAYBE", "EX_COUNT", "EX_RATIO", "EX_WAIT", "EX_SIZE", "EX_PATH", "EX_URL", "EX_MODE",
    ]  # fmt: skip
    assert {setting.field for setting in settings if setting.secret} == {"key"}
    assert {setting.field for setting in settings if setting.default is None} == {"name"}
    assert {setting.field: setting.default for setting in settings}["wait"] == "90s"


def test_defaults_as_described_are_read_back_as_the_defaults() -> None:
    described = {one.variable.name: one.default or "" for one in CoreSettings.describe()}
    described["JOBS_BACKUP_STORAGE_PROVIDER"] = "FILE"
    assert CoreSettings.from_environment(described) == CoreSettings(storage_provider="FILE")


def test_every_core_setting_has_a_help_text_and_a_name_of_its_own() -> None:
    settings = list(CoreSettings.describe())
    assert [one.field for one in settings] == [field.name for field in msgspec.structs.fields(CoreSettings)]
    assert len({one.variable.name for one in settings}) == len(settings)
    assert all(one.variable.help.endswith(".") for one in settings)


def test_the_defaults_of_batches_are_those_of_rudderstack() -> None:
    settings = CoreSettings.from_environment({"JOBS_BACKUP_STORAGE_PROVIDER": "S3"})
    assert settings.batch_events == 100_000
    assert settings.batch_bytes == Size(10**9)
    assert settings.upload_frequency == Duration(300)
    assert (settings.prefix, settings.instance_id) == ("", "1")


# Durations and sizes


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("1s", 1), ("5m", 300), ("2h", 7200), ("1d", 86400), ("30", 30), ("1.5h", 5400), ("5 M", 300), ("0", 0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert Duration.parse(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64MiB", 2**26),
        ("1GB", 10**9),
        ("1gb", 10**9),
        ("10", 10),
        ("1.5KiB", 1536),
        ("2 TB", 2 * 10**12),
        ("7b", 7),
        ("1kB", 1000),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert Size.parse(text) == size


@given(st.integers(0, 10**12))
def test_a_duration_is_read_back_as_it_is_shown(milliseconds: int) -> None:
    duration = Duration(milliseconds / 1000)
    assert Duration.parse(str(duration)) == pytest.approx(duration, abs=1e-9, rel=1e-12)


@given(st.integers(0, 2**50))
def test_a_size_is_read_back_as_it_is_shown(size: int) -> None:
    assert Size.parse(str(Size(size))) == size


@pytest.mark.parametrize(
    ("value", "text"),
    [(Duration(300), "5m"), (Duration(90), "90s"), (Duration(0.25), "250ms"), (Duration(0), "0ms"),
     (Duration(1234.5678), "1234567.8ms"), (Size(10**9), "1GB"), (Size(2**30), "1GiB"), (Size(1001), "1001"), (Size(0), "0")],
)  # fmt: skip
def test_durations_and_sizes_show_themselves_in_the_largest_whole_unit(value: Duration | Size, text: str) -> None:
    assert str(value) == text


# Secrets


SHOWN: dict[str, Callable[[Any], object]] = {
    "repr": repr,
    "str": str,
    "ascii": ascii,
    "f-string": lambda value: f"{value} {value!r} {value!s}",
    "format": format,
    "percent": lambda value: "%s %r" % (value, value),  # noqa: UP031 - logging formats like this
    "in a list": lambda value: str([value, {"key": value}]),
    "a copy": lambda value: repr(copy.copy(value)),
    "log record": lambda value: logging.LogRecord("n", 30, "p", 1, "key %s", (value,), None).getMessage(),
}


@pytest.mark.parametrize("show", SHOWN.values(), ids=SHOWN.keys())
def test_a_secret_shows_itself_nowhere(show: Callable[[Any], object]) -> None:
    settings = read(EX_KEY=CANARY)
    for value in (Secret(CANARY), settings.key, settings):
        text = str(show(value))
        assert CANARY not in text
        assert "****" in text


def test_a_secret_with_a_format_or_width_shows_nothing_either() -> None:
    assert f"{Secret(CANARY):>40}{Secret(CANARY):.3}" == "********"


@pytest.mark.parametrize(
    "give_away",
    [
        lambda secret: "".join([secret]),
        lambda secret: "key=" + secret,
        lambda secret: secret.encode(),
        msgspec.json.encode,
        lambda secret: secret[0],
    ],
)
def test_a_secret_is_not_given_away_by_mistake(give_away: Callable[[Any], object]) -> None:
    with pytest.raises((TypeError, AttributeError)) as caught:
        give_away(Secret(CANARY))
    assert CANARY not in str(caught.value)


def test_settings_with_a_secret_can_not_be_serialised() -> None:
    with pytest.raises(TypeError):
        msgspec.json.encode(read(EX_KEY=CANARY))


def test_a_secret_reveals_itself_when_asked_and_compares() -> None:
    secret = Secret(CANARY)
    assert secret.reveal() == CANARY
    assert secret == Secret(CANARY)
    assert hash(secret) == hash(Secret(CANARY))
    assert secret != Secret("other")
    assert secret != CANARY
    assert secret
    assert not Secret("")


class Token(Secret):
    """A plugin's own kind of secret."""


class Host(Endpoint):
    """A plugin's own kind of endpoint."""


class Derived(Settings, frozen=True, kw_only=True):
    token: Annotated[Token | None, Variable("EX_TOKEN", "A token.")] = None
    host: Annotated[Host | None, Variable("EX_HOST", "A host.")] = None


def test_a_type_derived_from_a_secret_or_an_endpoint_is_not_shown_either() -> None:
    found = Derived.from_environment({"EX_TOKEN": CANARY, "EX_HOST": "https://host/"})
    assert (type(found.token), type(found.host), found.host) == (Token, Host, "https://host")
    assert found.token is not None
    assert found.token.reveal() == CANARY
    assert CANARY not in repr(found)
    assert [setting.secret for setting in Derived.describe()] == [True, False]
    for text in ("canary", "user:canary@host", "ftp://canary"):
        with pytest.raises(ConfigurationError) as caught:
            Derived.from_environment({"EX_HOST": text, "EX_TOKEN": "canary\x01"})
        assert "canary" not in caught.value.one_line()


class Strict(Settings, frozen=True, kw_only=True):
    key: Annotated[Secret, Variable("EX_KEY", "A secret.")]
    count: Annotated[int, Variable("EX_COUNT", "A number.")] = 1


def test_errors_beside_a_secret_do_not_show_it() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Strict.from_environment({"EX_KEY": CANARY, "EX_COUNT": "wrong"})
    assert str(caught.value) == "EX_COUNT='wrong': expected a whole number"
    assert CANARY not in "".join(traceback.format_exception(caught.value)) + repr(caught.value) + caught.value.one_line()


def test_a_secret_that_is_wrong_itself_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Secret, text: str) -> None:
        raise ValueError("expected a JSON document")

    monkeypatch.setattr(Secret, "__init__", refuse)
    with pytest.raises(ConfigurationError) as caught:
        Strict.from_environment({"EX_KEY": CANARY})
    assert str(caught.value) == "EX_KEY: expected a JSON document"


# Location of the spool


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"JOBS_BACKUP_SPOOL_DIR": "/spool", "RUDDER_TMPDIR": "/tmp/r", "XDG_STATE_HOME": "/state"}, "/spool"),
        ({"RUDDER_TMPDIR": "/tmp/r", "XDG_STATE_HOME": "/state"}, "/tmp/r/jobs-backup"),
        ({"XDG_STATE_HOME": "/state"}, "/state/jobs-backup"),
        ({}, "/home/me/.local/state/jobs-backup"),
        ({"JOBS_BACKUP_SPOOL_DIR": "~/spool"}, "/home/me/spool"),
    ],
)
def test_the_spool_is_where_the_first_of_the_variables_says(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    settings = CoreSettings.from_environment({"JOBS_BACKUP_STORAGE_PROVIDER": "FILE", **variables})
    assert settings.spool_place == Path(expected)


def test_a_relative_spool_directory_does_not_depend_on_later_changes_of_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = CoreSettings.from_environment({"JOBS_BACKUP_STORAGE_PROVIDER": "FILE", "JOBS_BACKUP_SPOOL_DIR": "spool"})
    assert settings.spool_place == tmp_path / "spool"


def test_without_a_home_directory_the_error_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(ConfigurationError) as caught:
        _ = CoreSettings(storage_provider="FILE").spool_place
    assert "JOBS_BACKUP_SPOOL_DIR" in caught.value.hint


# Unknown names


def report(*names: str) -> list[str]:
    return report_unknown(dict.fromkeys(names, "x"), CoreSettings, Example)


def test_known_names_are_not_reported() -> None:
    assert not report(
        *(one.variable.name for one in CoreSettings.describe()), "EX_NAME", "EX_OLD_NAME", "PATH", "JOBSERVER_AUTH", "AWS_REGION"
    )


def test_old_names_are_known_too() -> None:
    class Renamed(Settings, frozen=True, kw_only=True):
        name: Annotated[str, Variable("JOBS_BACKUP_NAME", "A text.", aliases=("JOBS_BACKUP_NOM",))] = ""

    assert report_unknown({"JOBS_BACKUP_NOM": "x"}, Renamed) == []


def test_rudderstacks_variable_without_a_meaning_here_is_not_reported() -> None:
    assert not report("JOBS_BACKUP_DEFAULT_PREFIX")


@pytest.mark.parametrize(
    "name",
    [
        "JOBS_BACKUP_SERVICE_HOST",
        "JOBS_BACKUP_SERVICE_PORT",
        "JOBS_BACKUP_SERVICE_PORT_HTTP",
        "JOBS_BACKUP_PORT",
        "JOBS_BACKUP_PORT_80_TCP_ADDR",
    ],
)
def test_names_that_kubernetes_makes_up_for_a_service_are_not_reported(name: str) -> None:
    assert not report(name)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("JOBS_BACKUP_PREFX", "JOBS_BACKUP_PREFIX"),
        ("JOBS_BACKUP_BATCH_EVENT", "JOBS_BACKUP_BATCH_EVENTS"),
        ("JOBS_BACKUP_STORAGEPROVIDER", "JOBS_BACKUP_STORAGE_PROVIDER"),
        ("JOBS_BACKP_PREFIX", "JOBS_BACKUP_PREFIX"),
        ("jobs_backup_prefix", "JOBS_BACKUP_PREFIX"),
    ],
)
def test_an_unknown_name_is_reported_with_the_nearest_one(name: str, near: str) -> None:
    assert report(name) == [f"{name} is not a setting: did you mean {near}?"]


def test_an_unknown_name_like_no_other_is_reported_too() -> None:
    assert report("JOBS_BACKUP_X") == ["JOBS_BACKUP_X is not a setting and has no effect"]


@pytest.mark.parametrize(
    ("name", "near"),
    [("EX_FLIGHT", None), ("EXAMPLE_SECRET_KYE", "EXAMPLE_SECRET_KEY"), ("example_secret_key", "EXAMPLE_SECRET_KEY")],
)
def test_names_without_our_prefix_are_reported_if_they_are_nearly_a_setting(name: str, near: str | None) -> None:
    class Other(Settings, frozen=True, kw_only=True):
        flag: Annotated[bool, Variable("EX_FLAG", "On or off.")] = False
        key: Annotated[Secret | None, Variable("EXAMPLE_SECRET_KEY", "A key.")] = None
        endpoint: Annotated[str, Variable("AWS_ENDPOINT_URL_S3", "A URL.")] = ""

    lines = report_unknown({name: CANARY, "AWS_ENDPOINT_URL_SQS": "x", "AWS_PROFILE": "x"}, Other)
    assert lines == ([f"{name} is not a setting: did you mean {near}?"] if near else [])


# Probable mistakes


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Callable[..., list[str]]:
    def read_and_list(**variables: str) -> list[str]:
        warn_of_oddity.cache_clear()
        caplog.clear()
        with contextlib.suppress(ConfigurationError):
            read(**variables)
        assert {getattr(record, "code", "") for record in caplog.records} <= {"OddValue", "UnknownSetting"}
        return [record.getMessage() for record in caplog.records]

    return read_and_list


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('"spool9"', "quotes"),
        ("'spool9'", "quotes"),
        ("`spool9`", "quotes"),
        ("\u201cspool9\u201d", "quotes"),
        ('""', "quotes"),
        ("spool9 # where it waits", "comment"),
        ("${HOME}/spool", "reference"),
        ("$HOME/spool", "reference"),
        ("$(pwd)/spool", "reference"),
    ],
)
@pytest.mark.parametrize("name", ["EX_NAME", "EX_PATH", "EX_COUNT", "EX_WAIT", "EX_MODE", "EX_KEY", "EX_URL", "EX_OLD_NAME"])
def test_a_value_that_was_hardly_meant_is_reported_with_its_variable(
    name: str, text: str, what: str, warned: Callable[..., list[str]]
) -> None:
    variables = {name: text, **({"EX_NAME": ""} if name == "EX_OLD_NAME" else {})}
    (line,) = [line for line in warned(**variables) if "old name" not in line]
    assert line.startswith(f"{name}: ")
    assert what in line
    assert "spool" not in line, "a secret may be in quotes, too"


@pytest.mark.parametrize(
    "text", ["a'b", '"', "it's", "a#b", "#tag", "costs $5", "pa$$word", "x", '{"a":"b"}', "a=b", "$1.50", "$", '"a" or "b', "{a}"]
)
def test_a_sign_within_a_value_is_no_oddity(text: str) -> None:
    assert oddity_of(text) == ""


def test_what_two_structs_read_is_reported_once(warned: Callable[..., list[str]], caplog: pytest.LogCaptureFixture) -> None:
    assert len(warned(EX_PATH='"x"')) == 1
    read(EX_PATH='"x"')
    assert len(caplog.records) == 1


def test_values_of_unknown_names_are_not_shown() -> None:
    lines = report_unknown({"JOBS_BACKUP_SECRET_KEY": CANARY, "JOBS_BACKUP_PREFX": CANARY}, CoreSettings)
    assert len(lines) == 2
    assert CANARY not in "".join(lines)


@pytest.mark.parametrize("name", ["JOBS_BACKUP_BATCH_BYTES", "JOBS_BACKUP_PART_SIZE", "JOBS_BACKUP_REQUEST_TIMEOUT"])
def test_a_size_or_duration_that_makes_no_sense_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name}='0': expected at least 1"):
        CoreSettings.from_environment({"JOBS_BACKUP_STORAGE_PROVIDER": "FILE", name: "0"})


class Store(Settings, frozen=True, kw_only=True):
    url: Annotated[str, Variable("DAVBOX_URL", "Where.")]
    user: Annotated[str, Variable("DAVBOX_USER", "Who.")]


def test_another_setting_is_no_typing_error() -> None:
    with pytest.raises(ConfigurationError, match=r"(?m)DAVBOX_USER is not set$"):
        Store.from_environment({"DAVBOX_URL": "http://host"})
    with pytest.raises(ConfigurationError, match=r"DAVBOX_USER is not set \(but DAVBOX_USSER is: a typo\?\)"):
        Store.from_environment({"DAVBOX_URL": "http://host", "DAVBOX_USSER": "alice"})
