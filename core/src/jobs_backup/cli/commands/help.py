"""`jobs-backup help CODE`: explain a message's code from docs/messages.md, which the distribution contains."""

from __future__ import annotations

import difflib
import re
from importlib.resources import files

import click


@click.command("help")
@click.argument("code", required=False)
@click.pass_context
def help(ctx: click.Context, code: str | None) -> None:
    """Explain the CODE in brackets at the end of a message: what happened, what to do, and whether anything is lost.

    Without CODE, list all codes. With the name of a command instead, print its help.

    \b
    Example:
      jobs-backup help Waiting
    """
    sections = read_sections()
    if code is None:
        click.echo("Codes at the end of messages; `jobs-backup help CODE` explains one:\n")
        click.echo("\n".join(f"  {one}" for one in sections))
        return
    found = {one.lower(): one for one in sections}.get(code.strip("[] .,:").lower())
    if found is not None:
        click.echo(_as_text(found, sections[found]))
        return
    group = ctx.parent.command if ctx.parent else None
    command = group.get_command(ctx, code) if isinstance(group, click.Group) else None
    if command is None:
        near = difflib.get_close_matches(code, sections, n=1)
        raise click.UsageError(f"no message has the code {code!r}" + (f": did you mean {near[0]}?" if near else ""), ctx)
    with click.Context(command, info_name=code, parent=ctx.parent) as of_command:
        click.echo(command.get_help(of_command))


def read_sections() -> dict[str, str]:
    """Code -> its section of the page."""
    page = files("jobs_backup").joinpath("messages.md").read_text("utf-8")
    _, *parts = re.split(r"^## (\w+)$", page, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _as_text(code: str, section: str) -> str:
    """Markdown for a terminal: without fences and bold marks, and with only the text of links."""
    text = re.sub(r"^```\w*\n(.*?)^```$", lambda block: _indented(block[1]), section.strip(), flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"\[([^][]+|`\[\w+\]`)\]\([^)]*\)", r"\1", text)
    return f"{code}\n\n{text.replace('**', '')}"


def _indented(lines: str) -> str:
    return "\n".join(f"    {line}" for line in lines.splitlines())
