"""`--env-file`: reads a docker.env exactly as `docker run --env-file` reads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jobs_backup.errors import ConfigurationError


def read_env_file(path: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of a docker.env.

    As in Docker: one `NAME=value` a line; the value is everything behind the first `=`, quotes, spaces and `#` included; blank
    lines and lines that begin with `#` are skipped; white space before the name is dropped; a `NAME` alone takes its value from
    `environment`, and is left out where that has none.

    Raises:
        ConfigurationError: the file can't be read, is not UTF-8, or a line has no name or one with white space in it.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}", hint="pass a readable file to --env-file") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: byte {error.start} is not UTF-8", hint="save the file as UTF-8") from error
    variables: dict[str, str] = {}
    for number, ended in enumerate(text.split("\n"), 1):
        line = ended.removesuffix("\r").lstrip()
        if not line or line.startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not name:
            raise ConfigurationError(f"{path}:{number}: no variable's name before '='", hint="write NAME=value")
        if " " in name or "\t" in name:
            raise ConfigurationError(
                f"{path}:{number}: white space in the variable's name", hint="write NAME=value, without `export` and without spaces"
            )
        if "\0" in line:
            raise ConfigurationError(f"{path}:{number}: a NUL character", hint="remove it")
        if equals:
            variables[name] = value
        elif name in environment:
            variables[name] = environment[name]
    return variables
