"""`--env-file`: reads a docker.env exactly as `docker run --env-file` does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from jobs_backup.errors import ConfigurationError
from jobs_backup.settings.base import oddity_of, warn_of_oddity
from jobs_backup.util.disclosure import may_be_credential

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")


def read_env_file(path: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Read the variables of a docker.env.

    As in Docker, each line is `NAME=value`. The value is everything after the first `=`, including quotes, spaces and `#`. Blank
    lines and lines that begin with `#` are skipped, and white space before the name is dropped. A `NAME` alone takes its value from
    `environment`, and is omitted if not set there. The last of several lines with the same name counts.

    Raises:
        ConfigurationError: the file cannot be read, is not UTF-8, or a line has no name, a name with white space, or a NUL
            character.
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
            raise ConfigurationError(f"{path}:{number}: missing variable name before '='", hint="write NAME=value")
        if " " in name or "\t" in name:
            raise ConfigurationError(
                f"{path}:{number}: whitespace in the variable name", hint="write NAME=value, without `export` and without spaces"
            )
        if "\0" in line:
            raise ConfigurationError(f"{path}:{number}: a NUL character", hint="remove it")
        # A line of a key or a certificate has no name to show.
        shown = name if _NAME.fullmatch(name) and not may_be_credential(name) else f"{path}:{number}"
        if shown != name:
            warn_of_oddity(shown, "this is not a variable name: write NAME=value")
        if equals:
            if variables.get(name, value) != value:
                warn_of_oddity(shown, f"it is set again in line {number} of {path}, and the last value counts: remove the others")
            variables[name] = value
            if odd := oddity_of(value.strip()) or (
                value != value.strip() and "the spaces around the value are part of it: remove them"
            ):
                warn_of_oddity(shown, odd)
        elif name in environment:
            variables[name] = environment[name]
    return variables
