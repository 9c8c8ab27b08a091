"""Files generated from the code: `make reference` writes them all; a test compares them with the code."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from enum import Enum
from types import ModuleType
from typing import Any, Final

import click
import licenses
import msgspec
import refused
import settings_reference
from click.testing import CliRunner
from places import ROOT

from jobs_backup import bodies, checksum, errors, hookspecs, model, sdk, settings
from jobs_backup.cli import cli
from jobs_backup.errors import JobsBackupError
from jobs_backup.hookspecs import MANDATORY, MULTIPART, OPTIONAL
from jobs_backup.inputs.http import openapi
from jobs_backup.settings import Settings
from jobs_backup.settings.server import ServerSettings
from jobs_backup.testing.conformance import ProviderConformance
from jobs_backup.testing.multipart import MultipartConformance
from jobs_backup.testing.refusals import RefusalConformance
from jobs_backup.testing.strangers import StrangerConformance

_BUCKET: Final = {"JOBS_BACKUP_BUCKET": "my-events"}


def command(*arguments: str, **variables: str) -> str:
    """The output of `jobs-backup` with only these variables set."""
    result = CliRunner(env={"JOBS_BACKUP_STORAGE_PROVIDER": None, "JOBS_BACKUP_PREFIX": None, **variables}).invoke(
        cli, arguments, prog_name="jobs-backup", terminal_width=100, catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return result.stdout


def commands() -> str:
    """The reference of the commands."""
    context = click.Context(cli)
    parts = [
        "# Commands\n\n<!-- Generated from the commands' own help: change that, then run `make reference`. -->\n",
        f"```text\n{command('--help')}```\n",
        'Completion: `eval "$(_JOBS_BACKUP_COMPLETE=bash_source jobs-backup)"`; `zsh_source` and `fish_source` in those shells.\n',
    ]
    for name in cli.list_commands(context):
        found = cli.get_command(context, name)
        names = [f"{name} {one}" for one in found.commands] if isinstance(found, click.Group) else [name]
        parts += [f"## {one}\n\n```text\n{command(*one.split(), '--help')}```\n" for one in names]
    return "\n".join(parts)


def hooks() -> str:
    """The reference of the provider contract."""
    parts = [
        "# Hooks\n\n<!-- Generated from the hook specifications: change those, then run `make reference`. -->\n",
        _text(inspect.getdoc(hookspecs)),
        f"`API_VERSION` is {hookspecs.API_VERSION}.\n",
    ]
    groups = (("Mandatory", MANDATORY), ("For objects in parts: all three or none", MULTIPART), ("Optional", OPTIONAL))
    for title, names in groups:
        parts.append(f"## {title}\n")
        parts += [_hook(name, getattr(hookspecs.StorageProvider, name)) for name in names]
    parts.append("## Implemented by core\n")
    parts.append(_hook("open_body", hookspecs.ObjectHooks.open_body))
    parts.append(f"## What a provider has besides\n\n{_text(inspect.getdoc(hookspecs.Provider))}")
    parts.append(f"## Wrappers\n\n{_text(inspect.getdoc(hookspecs.Wrapper))}")
    return "\n".join(parts)


def conformance() -> str:
    """The reference of the conformance suite."""
    parts = [
        "# The conformance suite\n\n<!-- Generated from the tests' docstrings: change those, then run `make reference`. -->\n",
        "What each test of `jobs_backup.testing.conformance.ProviderConformance` wants, and why."
        " [Write a provider](../provider-guide.md#6-the-conformance-suite) explains how to run them.\n",
    ]
    titles = {
        ProviderConformance: "Form, objects, reading back",
        MultipartConformance: "Uploads in parts\n\nAll skipped for a provider without these hooks.",
        RefusalConformance: "Refusals and failures\n\nSome need a further fixture: `environment_without_rights`, `environment_at`.",
        StrangerConformance: "Answers of a proxy, and faults\n\nAll of them need the fixture `environment_at`.",
    }
    for class_, title in titles.items():
        rows = []
        for name, function in vars(class_).items():
            if name.startswith("test_"):
                wants, _, why = (inspect.getdoc(function) or "").partition("\n\n")
                rows.append(f"| `{name}` | {' '.join(wants.split())} | {' '.join(why.split())} |\n")
        parts.append(f"## {title}\n\n| test | wants | because |\n|---|---|---|\n{''.join(rows)}")
    return "\n".join(parts)


def library() -> str:
    """The reference of what providers and wrappers import, besides the hooks."""
    parts = [
        "# Library\n\n<!-- Generated from the docstrings: change those, then run `make reference`. -->\n",
        "What providers and wrappers import, beside [the hooks](hooks.md). [Compatibility](../compatibility.md) explains how it may"
        " change.\n",
    ]
    for module in (model, bodies, sdk, errors, settings, checksum):
        names = getattr(module, "__all__", None) or [name for name in vars(module) if _is_own(module, name)]
        parts.append(f"## {module.__name__}\n\n{_text(inspect.getdoc(module))}")
        classes = [value for value in map(vars(module).get, names) if inspect.isclass(value)]
        parts += [_class(value) for value in classes if not issubclass(value, JobsBackupError)]
        if rows := [_error(value) for value in classes if issubclass(value, JobsBackupError)]:
            parts.append(f"| error | is a | retried | refused | |\n|---|---|---|---|---|\n{''.join(rows)}")
        parts += [
            _called(f"### {value.__name__}\n\n", value) for value in map(vars(module).get, names) if inspect.isfunction(value)
        ]
    return "\n".join(parts)


def _is_own(module: ModuleType, name: str) -> bool:
    return not name.startswith("_") and getattr(getattr(module, name), "__module__", "") == module.__name__


def _class(value: type[Any]) -> str:
    members = {name: one.__func__ if isinstance(one, classmethod) else one for name, one in vars(value).items()}
    text = f"### {value.__name__}\n\n"
    if issubclass(value, Enum):
        text += f"{', '.join(f'`{one.name}`' for one in value)}\n\n"
    elif issubclass(value, msgspec.Struct) and value is not Settings:
        text += f"```text\n{value.__name__}{_arguments(value)}\n```\n\n"
    text += _text(inspect.getdoc(value))
    if (made := members.get("__init__")) and not getattr(value, "_is_protocol", False):
        text += f"\n{_called('', made, value.__name__)}"
    methods = [one for name, one in members.items() if inspect.isfunction(one) and not name.startswith("_") and one.__doc__]
    return text + "".join(f"\n{_called('', one)}" for one in methods)


def _error(value: type[JobsBackupError]) -> str:
    doc = " ".join((inspect.getdoc(value) or "").split()).replace("Attributes: ", "")
    more = [name for name in inspect.signature(value).parameters if name not in ("message", "hint")]
    base = value.__base__.__name__ if value.__base__ else ""
    flags = " | ".join("yes" if flag else "" for flag in (value.retryable, value.refused))
    return f"| `{value.__name__}`{' with ' if more else ''}{', '.join(f'`{one}`' for one in more)} | `{base}` | {flags} | {doc} |\n"


def _called(heading: str, function: Callable[..., Any], name: str = "") -> str:
    returns = "" if name else f" -> {inspect.signature(function).return_annotation}"
    doc = f"\n{_text(inspect.getdoc(function))}" if function.__doc__ else ""
    return f"{heading}```text\n{name or function.__name__}{_arguments(function)}{returns}\n```\n{doc}"


def _arguments(called: Callable[..., Any]) -> str:
    parameters = [one for one in inspect.signature(called).parameters.values() if one.name not in ("self", "cls")]
    text = str(inspect.Signature(parameters)).replace("<factory>", "{}")
    # Some modules have their annotations as strings.
    return re.sub(r"jobs_backup\.\w+\.", "", re.sub(r": '([^']*)'", r": \1", text))


def _hook(name: str, function: Callable[..., Any]) -> str:
    signature = inspect.signature(function)
    arguments = ", ".join(
        f"{one.name}: {one.annotation}" for one in signature.parameters.values() if one.name != "self"
    )  # the module has its annotations as strings
    return f"### {name}\n\n```text\n{name}({arguments}) -> {signature.return_annotation}\n```\n\n{_text(inspect.getdoc(function))}"


def _text(doc: str | None) -> str:
    """A docstring as Markdown: its sections become lists."""
    text = re.sub(r"^(Args|Raises|Attributes):\n", r"**\1**\n\n", doc or "", flags=re.MULTILINE)
    text = re.sub(r"\n {8}(?=\S)", " ", text)  # continuation lines
    return re.sub(r"^    (\w+(?:, \w+)*): ", r"- `\1`: ", text, flags=re.MULTILINE) + "\n"


def http() -> str:
    """The reference of the server's paths."""
    made = openapi.document(ServerSettings())
    parts = [
        "# HTTP\n\n<!-- Generated from the server's OpenAPI document: change that, then run `make reference`. -->\n",
        "Responses of [`jobs-backup serve`](../serve.md). [openapi.json](openapi.json) is the whole document, with the schemas.\n",
        'Every response other than success has a body such as `{"error": {"code": ..., "message": ..., "hint": ..., "index": ...,'
        ' "request_id": ...}}`; [messages](../messages.md) has a section for each code.\n',
    ]
    for path, methods in made["paths"].items():
        for method, operation in methods.items():
            who = " or ".join(sorted({name for one in operation["security"] for name in one})) or "everyone"
            parts.append(f"## {method.upper()} {path}\n\n{operation['summary']}. For: {who}.\n")
            if takes := operation.get("requestBody", {}).get("content"):
                parts.append(f"Takes {', '.join(f'`{type_}`' for type_ in takes)}.\n")
            parts += [f"- `?{one['name']}=`: {one['description']}\n" for one in operation.get("parameters", ())]
            rows = "".join(f"| {status} | {answer['description']} |\n" for status, answer in operation["responses"].items())
            parts.append(f"| status | meaning |\n|---|---|\n{rows}")
    return "\n".join(parts)


FILES: Final[dict[str, Callable[[], str]]] = {
    "core/src/jobs_backup/messages.md": (ROOT / "docs/messages.md").read_text,  # for `jobs-backup help`
    "docs/settings.md": settings_reference.render,
    "docs/reference/commands.md": commands,
    "docs/reference/hooks.md": hooks,
    "docs/reference/library.md": library,
    "docs/reference/http.md": http,
    "docs/reference/conformance.md": conformance,
    "docs/reference/licenses.md": licenses.page,
    "docs/reference/refusals.md": refused.table,
    "docs/reference/openapi.json": lambda: json.dumps(openapi.document(ServerSettings()), indent=1) + "\n",
    "contrib/docker/docker.env": lambda: command("env", "S3"),
    "contrib/iam/s3-policy.json": lambda: command("policy", "--provider", "S3", **_BUCKET),
    "contrib/iam/s3-policy-with-delete.json": lambda: command("policy", "--provider", "S3", "--with-delete", **_BUCKET),
    "contrib/iam/s3-policy-with-replay.json": lambda: command("policy", "--provider", "S3", "--with-replay", **_BUCKET),
    "contrib/iam/s3.tf": lambda: command("policy", "--provider", "S3", "--format", "terraform", **_BUCKET),
    "contrib/iam/gcs-role.json": lambda: command("policy", "--provider", "GCS", "--format", "json", **_BUCKET),
    "contrib/iam/gcs.sh": lambda: command("policy", "--provider", "GCS", "--format", "commands", **_BUCKET),
    "contrib/iam/gcs.tf": lambda: command("policy", "--provider", "GCS", "--format", "terraform", **_BUCKET),
}
"""Path -> the function that renders its text."""


if __name__ == "__main__":
    for path, make in FILES.items():
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text(make())
