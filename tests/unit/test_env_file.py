"""`--env-file` reads what `docker run --env-file` reads, by the rules of docker/cli's parser of key-value files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from buckets import file_environment
from commands import start
from hypothesis import given
from hypothesis import strategies as st

from jobs_backup.checks.settings import warn_of_relative_paths
from jobs_backup.errors import ConfigurationError
from jobs_backup.settings.base import warn_of_oddity
from jobs_backup.settings.env_file import read_env_file

Read = Callable[..., dict[str, str]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def write_and_read(content: str | bytes, **environment: str) -> dict[str, str]:
        path = tmp_path / "docker.env"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_env_file(path, environment)

    return write_and_read


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("A=b", {"A": "b"}),
        ("A=", {"A": ""}),
        ("A=b=c==", {"A": "b=c=="}),
        ("A= b ", {"A": " b "}),
        ("A=b # no comment", {"A": "b # no comment"}),
        ("A=#b", {"A": "#b"}),
        ('A="b"', {"A": '"b"'}),
        ("A='b'", {"A": "'b'"}),
        ("A=$HOME ${B} \\n `id`", {"A": "$HOME ${B} \\n `id`"}),
        ("A=b\tc", {"A": "b\tc"}),
        ("  \t A=b", {"A": "b"}),
        ("a.b-c/d=1", {"a.b-c/d": "1"}),
        ("1A=b", {"1A": "b"}),
        ("Ü=ü", {"Ü": "ü"}),
        ("A#B=c", {"A#B": "c"}),
        ("# A=b", {}),
        ("   # A=b", {}),
        ("#", {}),
        ("", {}),
        (" \t ", {}),
    ],
)
def test_a_line(read: Read, line: str, expected: dict[str, str]) -> None:
    assert read(line) == expected
    assert read(f"X=1\n{line}\nY=2\n") == {"X": "1", **expected, "Y": "2"}


def test_a_name_alone_takes_its_value_from_the_environment(read: Read) -> None:
    assert read("A\nB\nC=c\n", A="from outside", C="not this") == {"A": "from outside", "C": "c"}
    assert read("A\r\n", A="") == {"A": ""}


def test_the_last_of_two_lines_wins_which_is_told(read: Read, caplog: pytest.LogCaptureFixture) -> None:
    warn_of_oddity.cache_clear()
    assert read("A=canary\nB=1\nA=canary\nB=1\n") == {"A": "canary", "B": "1"}
    assert caplog.text == ""
    assert read("A=canary\n\nA=2\n") == {"A": "2"}
    assert "A: it is set again in line 3 of" in caplog.text
    assert "canary" not in caplog.text


CANARY = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7"


@pytest.mark.parametrize(
    "line",
    [
        f"{CANARY}= ",
        f"{CANARY}==\n{CANARY}=",
        f"{CANARY}/+= # x",
        f'{CANARY[:24]}="a"',
        f"x/{CANARY}='a'",
        f"AKIA{CANARY[:16].upper()}=$A",
    ],
)
def test_a_line_of_a_key_is_not_shown_as_a_name(read: Read, line: str, caplog: pytest.LogCaptureFixture) -> None:
    warn_of_oddity.cache_clear()
    read(f"KEY=-----BEGIN PRIVATE KEY-----\n{line}\n")
    assert "docker.env:2: this is not a variable name" in caplog.text
    assert CANARY[:8] not in caplog.text


def test_a_byte_order_mark_is_no_part_of_the_name(read: Read) -> None:
    assert read(b"\xef\xbb\xbfA=b\n") == {"A": "b"}
    assert read(b"A=b\n\xef\xbb\xbfC=d\n") == {"A": "b", "\ufeffC": "d"}


def test_lines_that_end_as_on_windows(read: Read) -> None:
    assert read("A=b\r\n\r\n# c\r\nD=e\r\n") == {"A": "b", "D": "e"}
    assert read("A=b\r\r\nC=d\re\nF=g\r") == {"A": "b\r", "C": "d\re", "F": "g"}


def test_only_a_newline_ends_a_line(read: Read) -> None:
    assert read("A=b\x0bc\x0cd\u2028e\x85f\nG=h") == {"A": "b\x0bc\x0cd\u2028e\x85f", "G": "h"}


def test_an_empty_file_has_no_variables(read: Read) -> None:
    assert read("") == {}


@pytest.mark.parametrize("line", ["A B=c", "A =c", "A\t=c", "export A=c", "A B", "A ", "A\t", "first line"])
def test_white_space_in_a_name_is_an_error(read: Read, line: str) -> None:
    with pytest.raises(ConfigurationError, match=r"docker\.env:2: whitespace in the variable name"):
        read(f"X=1\n{line}\n", A="1")


@pytest.mark.parametrize("line", ["=c", " =c", "="])
def test_a_line_without_a_name_is_an_error(read: Read, line: str) -> None:
    with pytest.raises(ConfigurationError, match=r"docker\.env:3: missing variable name before '='"):
        read(f"X=1\n\n{line}\n")


@pytest.mark.parametrize("line", ["A=b\0c", "A\0=b", "A\0"])
def test_a_nul_character_is_an_error(read: Read, line: str) -> None:
    with pytest.raises(ConfigurationError, match=r"docker\.env:1: a NUL character"):
        read(line)


def test_bytes_that_are_not_utf8_are_an_error(read: Read) -> None:
    with pytest.raises(ConfigurationError, match=r"docker\.env: byte 4 is not UTF-8"):
        read(b"A=b\n\xff=c\n")


@pytest.mark.parametrize("line", ["export KEY=canary-7f3a", "=canary-7f3a", "KEY=canary-7f3a\0"])
def test_errors_show_nothing_of_the_line(read: Read, line: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(line)
    assert "canary" not in caught.value.one_line() + repr(caught.value)


@pytest.mark.parametrize(
    ("line", "logged"),
    [
        ('AWS_PROFILE="prod"', "AWS_PROFILE: the quotes"),
        ("AWS_PROFILE='prod'\r", "AWS_PROFILE: the quotes"),
        ("AWS_PROFILE=prod ", "AWS_PROFILE: the spaces"),
        ("AWS_PROFILE= prod", "AWS_PROFILE: the spaces"),
        ("AWS_PROFILE=prod\xa0", "AWS_PROFILE: the spaces"),
        ("AWS_PROFILE=prod # ours", "AWS_PROFILE: what looks like a comment"),
        ("AWS_PROFILE=${PROFILE}", "AWS_PROFILE: a reference"),
        ("AWS_PROFILE:prod", "docker.env:2: this is not a variable name"),
        ("\ufeffAWS_PROFILE=prod", "docker.env:2: this is not a variable name"),
        ("AWS\u2010PROFILE=prod", "docker.env:2: this is not a variable name"),
        ("AWS_PROFILE=prod", ""),
        ("AWS_PROFILE", ""),
        ("AWS_PROFILE=\r", ""),
        ("# a comment: it's fine", ""),
    ],
)
def test_what_docker_takes_and_nobody_means_is_reported(
    read: Read, line: str, logged: str, caplog: pytest.LogCaptureFixture
) -> None:
    """For any variable: the message is the only hint for those that SDKs read."""
    warn_of_oddity.cache_clear()
    read(f"A=1\n{line}\n")
    assert [logged in record.getMessage() for record in caplog.records] == ([True] if logged else [])
    assert "prod" not in caplog.text


@pytest.mark.parametrize(
    ("line", "is_relative"),
    [
        ("JOBS_BACKUP_SPOOL_DIR=spool", True),
        ("JOBS_BACKUP_SPOOL_DIR=./spool", True),
        ("JOBS_BACKUP_SPOOL_DIR=../spool", True),
        ("RUDDER_TMPDIR=tmp", True),
        ("JOBS_BACKUP_METRICS_FILE=m.prom", True),
        ("JOBS_BACKUP_SERVER_TLS_KEY=tls.key", True),
        ("JOBS_BACKUP_BUCKET=bucket", True),
        ("JOBS_BACKUP_ENCRYPTION_KEY_FILE=key", True),
        ("JOBS_BACKUP_SPOOL_DIR=/spool", False),
        ("JOBS_BACKUP_SPOOL_DIR=~/spool", False),
        ("JOBS_BACKUP_SPOOL_DIR=", False),
        ("JOBS_BACKUP_PREFIX=a/b", False),
    ],
)
def test_a_relative_path_in_an_env_file_is_reported_with_where_it_leads(
    line: str, is_relative: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    warn_of_oddity.cache_clear()
    name, _, text = line.partition("=")
    warn_of_relative_paths({"JOBS_BACKUP_STORAGE_PROVIDER": "FILE", "JOBS_BACKUP_WRAPPERS": "encryption", name: text})
    logged = [record.getMessage() for record in caplog.records]
    where = f"the directory depends on the working directory, here {Path(text).absolute()}"
    assert logged == ([f"{name}: {text} is a relative path: {where}"] if is_relative else [])


def test_the_commands_report_it_and_go_on(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    lines = {**file_environment(tmp_path), "JOBS_BACKUP_SPOOL_DIR": '"spool9"', "JOBS_BACKUP_PREFIX": "p"}
    (tmp_path / "docker.env").write_text("".join(f"{name}={text}\n" for name, text in lines.items()))
    with start("archive", "--once", "--env-file", "docker.env", env={}, cwd=tmp_path) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "WARNING JOBS_BACKUP_SPOOL_DIR: the quotes are part of the value: remove them [OddValue]" in err
    assert (tmp_path / '"spool9"').is_dir(), "as Docker has it"


def test_a_file_that_is_missing_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.env: No such file or directory") as caught:
        read_env_file(tmp_path / "nowhere.env", {})
    assert "--env-file" in caught.value.hint


def test_a_directory_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="Is a directory"):
        read_env_file(tmp_path, {})


# Any text of a file, except leading characters that are white space for Python but not for Go.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\0\x1c\x1d\x1e\x1f\ufeff"), max_size=20)
NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"], exclude_characters="=\ufeff"), min_size=1).filter(
    lambda name: not name.startswith("#")
)


@given(st.dictionaries(NAMES, TEXT), st.sampled_from(["\n", "\r\n"]), st.sampled_from(["", "\ufeff"]))
def test_whatever_can_be_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, variables: dict[str, str], end: str, mark: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "round.env"
    path.write_bytes((mark + "".join(f"{name}={value}{end}" for name, value in variables.items())).encode())
    assert read_env_file(path, {}) == variables


@given(
    st.lists(st.sampled_from(["A", "B", "=", " ", "\t", "#", "\r", "\n", "'", '"', "\ufeff", "x y", "export "]), max_size=30).map(
        "".join
    )
)
def test_any_text_is_read_as_docker_reads_it(tmp_path_factory: pytest.TempPathFactory, content: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.env"
    path.write_bytes(content.encode())
    expected = as_docker(content.encode(), {"A": "outside"})
    if expected is None:
        with pytest.raises(ConfigurationError):
            read_env_file(path, {"A": "outside"})
    else:
        assert read_env_file(path, {"A": "outside"}) == expected


def as_docker(content: bytes, environment: dict[str, str]) -> dict[str, str] | None:
    """Docker's rules again, in bytes and step by step; None is an error."""
    lines = content.split(b"\n")
    lines[0] = lines[0][3:] if lines[0][:3] == b"\xef\xbb\xbf" else lines[0]
    found: dict[str, str] = {}
    for whole in lines:
        line = whole.removesuffix(b"\r").lstrip(b" \t\r\v\f")
        if not line or line[:1] == b"#":
            continue
        name = line[: line.index(b"=")] if b"=" in line else line
        if not name or b" " in name or b"\t" in name:
            return None
        text = name.decode()
        if b"=" in line:
            found[text] = line[len(name) + 1 :].decode()
        elif text in environment:
            found[text] = environment[text]
    return found
