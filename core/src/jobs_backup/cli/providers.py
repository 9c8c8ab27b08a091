"""`jobs-backup providers`: what is installed, and what it is set by."""

from __future__ import annotations

import sys
from typing import Any

import click
import msgspec

from jobs_backup import providers as registry
from jobs_backup.cli.options import MISUSED, fail
from jobs_backup.errors import ProviderNotFound
from jobs_backup.hookspecs import MANDATORY, MULTIPART, OPTIONAL, PROJECT
from jobs_backup.providers import Installed
from jobs_backup.settings import Setting


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def providers(name: str | None, as_json: bool) -> None:
    """List the installed storage providers; with NAME, one with its settings.

    \b
    Example:
      jobs-backup providers FILE
    """
    if name is not None:
        try:
            described = [_describe(registry.load_class(name)[0])]
        except ProviderNotFound as error:
            fail(error)
    else:
        described = [_describe(one) for one in registry.installed()]
    if as_json:
        click.echo(msgspec.json.encode(described))
    else:
        for one in described:
            _print(one, settings=name is not None)
    if any(one["error"] for one in described):
        sys.exit(MISUSED)


def _describe(one: Installed) -> dict[str, Any]:
    described: dict[str, Any] = {
        "name": one.name,
        "distribution": one.distribution,
        "version": one.version,
        "entry_point": one.target,
        "hooks": [],
        "settings": [],
        "error": "",
    }
    try:
        _, class_ = registry.load_class(one.name)
    except ProviderNotFound as error:
        described["error"] = error.one_line()
        return described
    marker = f"{PROJECT}_impl"
    described["hooks"] = [hook for hook in (*MANDATORY, *MULTIPART, *OPTIONAL) if hasattr(getattr(class_, hook, None), marker)]
    if (settings := registry.settings_of(class_)) is not None:
        described["settings"] = [_setting(setting) for setting in settings.describe()]
    return described


def _setting(setting: Setting) -> dict[str, Any]:
    return {
        "variable": setting.variable.name,
        "default": setting.default,
        "required": setting.default is None,
        "secret": setting.secret,
        "help": setting.variable.help,
    }


def _print(one: dict[str, Any], *, settings: bool) -> None:
    click.echo(f"{one['name']:24}{one['distribution']} {one['version']}")
    if one["error"]:
        click.echo(f"    {one['error']}")
        return
    click.echo(f"    hooks: {', '.join(one['hooks'])}")
    names = ", ".join(setting["variable"] + ("*" if setting["required"] else "") for setting in one["settings"])
    if not settings:
        click.echo(f"    settings (* required): {names}")
        return
    for setting in one["settings"]:
        given = "required" if setting["required"] else f"default: {setting['default'] or 'empty'}"
        click.echo(f"    {setting['variable']}  ({given})\n        {setting['help']}")
