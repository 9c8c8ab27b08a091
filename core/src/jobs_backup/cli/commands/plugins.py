"""Output of `jobs-backup providers` and `jobs-backup wrappers`: installed plugins and their settings."""

from __future__ import annotations

import sys
from typing import Any

import click

from jobs_backup.cli.options import MISUSED, echo_message
from jobs_backup.cli.streams import print_json
from jobs_backup.hookspecs import PROJECT
from jobs_backup.settings import Setting
from jobs_backup.store.plugins import Installed, PluginKind, settings_of
from jobs_backup.store.providers import HOOKS
from jobs_backup.util.logs import printable


def show(kind: PluginKind, name: str | None, *, as_json: bool) -> None:
    """List the plugins of a kind, or one with its settings. Ends the command if one is broken.

    Raises:
        ConfigurationError: no plugin has this name.
    """
    chosen = kind.installed() if name is None else [kind.load_class(name)[0]]
    described = [_describe(kind, one) for one in chosen]
    if as_json:
        print_json(described)
    else:
        for one in described:
            _print(one, settings=name is not None)
        if not described:
            echo_message(f"no {kind.noun} is installed")
    if any(one["error"] for one in described):
        sys.exit(MISUSED)


def _describe(kind: PluginKind, one: Installed) -> dict[str, Any]:
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
        _, class_ = kind.load_class(one.name)
    except kind.not_found as error:
        described["error"] = error.one_line()
        return described
    marker = f"{PROJECT}_impl"
    hooks = (*HOOKS, "open_body")
    described["hooks"] = [hook for hook in hooks if hasattr(getattr(class_, hook, None), marker)]
    if (settings := settings_of(class_)) is not None:
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
    click.echo(printable(f"{one['name']:24}{one['distribution']} {one['version']}"))
    if one["error"]:
        click.echo(printable(f"    {one['error']}"))
        return
    click.echo(f"    hooks: {', '.join(one['hooks'])}")
    names = ", ".join(setting["variable"] + ("*" if setting["required"] else "") for setting in one["settings"])
    if not settings:
        click.echo(f"    settings (* required): {names or 'none'}")
        return
    for setting in one["settings"]:
        given = "required" if setting["required"] else f"default: {setting['default'] or 'empty'}"
        click.echo(f"    {setting['variable']}  ({given})\n        {setting['help']}")
