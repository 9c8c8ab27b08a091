"""Render docs/settings.md from the settings themselves; see `generated`."""

from __future__ import annotations

import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

from places import ROOT

from jobs_backup.format.compression import Compression
from jobs_backup.settings import Duration, Endpoint, Secret, Setting, Settings, Size
from jobs_backup.settings.core import CoreSettings
from jobs_backup.settings.server import ServerSettings
from jobs_backup.store import providers, wrappers
from jobs_backup.store.plugins import PluginKind, settings_of

HEAD: Final = """\
# Settings

<!-- Generated from the help texts in the code: change them, then run `make reference`. -->

All settings are environment variables. `--env-file FILE` reads them from a `docker.env`, by the rules of `docker run --env-file`:
one `NAME=value` per line; the value is everything after the first `=`, including quotes; a line that begins with `#` is a comment.

Durations are written as `500ms`, `30s`, `5m`, `2h`, sizes as `64MiB` (powers of 1,024) or `1GB` (powers of 1,000), switches as
`true` or `false` (also `yes`, `no`, `on`, `off`, `1`, `0`). An empty variable counts as not set. A variable whose name begins
with `JOBS_BACKUP_` but is not a setting is reported, with the nearest setting. So is any other name that is close to a setting.

A key, a certificate or a token in a setting for something else is refused, and none of it is shown. Quotes around a value, a
comment after it, a reference such as `${NAME}`, and a relative path in an env file are [reported](messages.md#oddvalue), and
used as written.
"""

TYPES: Final = {
    str: "text", int: "whole number", float: "number", bool: "switch", Path: "path", Duration: "duration", Size: "size",
    Endpoint: "URL", Secret: "secret", Compression: "compression",
}  # fmt: skip


def plugins_of_this_repository(kind: PluginKind) -> Iterator[tuple[str, type[Settings]]]:
    """Name and settings of each plugin of a kind in core, plugins and contrib."""
    found = (path for where in ("core", "plugins/*", "contrib/*") for path in sorted(ROOT.glob(f"{where}/pyproject.toml")))
    for project in found:
        table = tomllib.loads(project.read_text())["project"]
        for name in table["entry-points"].get(kind.group, ()):
            settings = settings_of(kind.load_class(name)[1])
            if settings is not None:
                yield name, settings


def render() -> str:
    """The whole page. A setting explained in an earlier section is only named."""
    explained: set[str] = set()
    sections = [HEAD, _section("Core", "For every provider.", CoreSettings, explained)]
    sections.append(_section("Server", "For `jobs-backup serve`.", ServerSettings, explained))
    for name, settings in plugins_of_this_repository(providers.KIND):
        sections.append(_section(name, f"With `JOBS_BACKUP_STORAGE_PROVIDER={name}`.", settings, explained))
    for name, settings in plugins_of_this_repository(wrappers.KIND):
        sections.append(_section(name, f"With {name} in `JOBS_BACKUP_WRAPPERS`.", settings, explained))
    return "\n".join(sections)


def _section(title: str, intro: str, settings: type[Settings], explained: set[str]) -> str:
    rows = {setting.variable.name: _row(setting) for setting in settings.describe()}
    new = {name: row for name, row in rows.items() if row not in explained}
    explained.update(new.values())
    section = f"## {title}\n\n{intro}\n\n| variable | type | default | meaning |\n|---|---|---|---|\n{''.join(new.values())}"
    if known := [f"`{name}`" for name in rows if name not in new]:
        section += f"\nAs above: {', '.join(known)}.\n"
    return section


def _row(setting: Setting) -> str:
    variable = setting.variable
    default = "**required**" if setting.default is None else f"`{setting.default}`" if setting.default else ""
    aliases = "".join(f" Old name: `{alias}`." for alias in variable.aliases)
    example = f" Example: `{variable.example}`." if variable.example else ""
    cells = (f"`{variable.name}`", _type(setting), default, variable.help + example + aliases)
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |\n"


def _type(setting: Setting) -> str:
    kinds = [one for one in _alternatives(setting.type) if one is not type(None)]
    return ", ".join(TYPES.get(one, f"`{one}`") for one in kinds)


def _alternatives(type_: object) -> list[typing.Any]:
    arguments = typing.get_args(type_)
    if not arguments:
        return [type_]
    if typing.get_origin(type_) is Literal:
        return list(arguments)
    return [one for argument in arguments for one in _alternatives(argument)]
