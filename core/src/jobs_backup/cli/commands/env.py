"""`jobs-backup env`: a docker.env for a provider, from the settings' own metadata."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator
from typing import Final

import click

from jobs_backup.cli.options import fail
from jobs_backup.errors import ConfigurationError
from jobs_backup.settings import Setting
from jobs_backup.settings.core import CoreSettings
from jobs_backup.settings.server import ServerSettings
from jobs_backup.store import wrappers
from jobs_backup.store.plugins import settings_of
from jobs_backup.store.providers import KIND, load_class

_WRAPPERS: Final = "JOBS_BACKUP_WRAPPERS"
_WIDTH: Final = 110
_HEAD: Final = """\
# Settings of jobs-backup for the provider {name}, printed by `jobs-backup env {name}`.
# Format of `docker run --env-file`: one NAME=value per line, no quotes, `#` only at the start of a line.
# Lines that are commented out show the default, or an example. Fill in the required settings.
"""


@click.command()
@click.argument("provider", required=False)
def env(provider: str | None) -> None:
    """Print a commented docker.env for PROVIDER (default: JOBS_BACKUP_STORAGE_PROVIDER) and the JOBS_BACKUP_WRAPPERS.

    \b
    Example:
      jobs-backup env FILE > docker.env
    """
    name = provider or os.environ.get("JOBS_BACKUP_STORAGE_PROVIDER", "").strip()
    try:
        if not name:
            raise ConfigurationError("no provider is given", hint=f"name one: {', '.join(KIND.names())}")
        one, class_ = load_class(name)
        plugins = [class_, *(wrappers.KIND.load_class(one)[1] for one in wrappers.names_in(os.environ.get(_WRAPPERS, "")))]
    except ConfigurationError as error:
        fail(error)
    # Print only once what both read, such as the prefix.
    core = {setting.variable.name: setting for setting in CoreSettings.describe()}
    own = [
        setting
        for settings in filter(None, map(settings_of, plugins))
        for setting in settings.describe()
        if setting.variable.name not in core
    ]
    click.echo(_HEAD.format(name=one.name), nl=False)
    click.echo(f"\nJOBS_BACKUP_STORAGE_PROVIDER={one.name}")
    everything = [setting for setting in (*own, *core.values(), *ServerSettings.describe()) if setting.field != "storage_provider"]
    for setting in sorted(everything, key=lambda setting: _active(setting) is None):
        click.echo("\n".join(_lines(setting)))


def _active(setting: Setting) -> str | None:
    """Value of a line that is not commented out; None if it is. Never an example's, whose bucket belongs to a stranger."""
    variable = setting.variable
    if setting.default is None:
        return ""
    if not variable.basic or (setting.is_path and variable.credential):  # a missing file hides other credentials
        return None
    return setting.default or (variable.example if setting.is_path else "")


def _lines(setting: Setting) -> Iterator[str]:
    variable = setting.variable
    active = os.environ.get(_WRAPPERS, "").strip() if variable.name == _WRAPPERS else None  # the output depends on it
    active = active or _active(setting)
    required = "Required. " if setting.default is None else ""
    example = f" For example: {variable.example}" if active == "" and variable.example else ""
    text = required + variable.help + example
    yield ""
    yield from textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
    yield f"#{variable.name}={setting.default or variable.example}" if active is None else f"{variable.name}={active}"
