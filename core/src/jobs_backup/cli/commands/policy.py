"""`jobs-backup policy`: least-privilege permissions."""

from __future__ import annotations

import os
import sys
from typing import Final

import click

from jobs_backup.cli.options import fail, one_option, warn_of_misspelt_settings, with_environment
from jobs_backup.errors import ConfigurationError, JobsBackupError
from jobs_backup.format.keys import clean_prefix
from jobs_backup.spool.engines import spool_policy
from jobs_backup.store import providers as registry
from jobs_backup.store.object_store import ObjectStore
from jobs_backup.store.retry import Retry, RetryPolicy

_FORMATS: Final = ("json", "terraform", "commands")


@click.command()
@one_option("--provider", help="Provider to print permissions for.  [default: JOBS_BACKUP_STORAGE_PROVIDER]")
@click.option("--with-delete", is_flag=True, help="Include permission to delete delivered events.")
@click.option("--with-replay", is_flag=True, help="Include permissions to list and read, for `replay`.")
@click.option("--spool", is_flag=True, help="SQL for a spool in PostgreSQL instead: its roles, its tables and their privileges.")
@click.option("--upgrade", is_flag=True, help="With --spool: SQL that upgrades the tables of an earlier version.")
@one_option("--format", "format_", type=click.Choice(_FORMATS), help="Output format.  [default: the one that suits the store]")
@with_environment
def policy(provider: str | None, with_delete: bool, with_replay: bool, spool: bool, upgrade: bool, format_: str | None) -> None:
    """Print least-privilege permissions for your settings: this bucket, this prefix, this key.

    Credentials are neither needed nor read. No request is sent.

    \b
    Example:
      JOBS_BACKUP_BUCKET=my-events jobs-backup policy --provider FILE
    """
    warn_of_misspelt_settings()
    if spool:
        if provider or with_delete or with_replay or format_:
            raise click.UsageError("--spool is about the database alone: it goes with no other option but --upgrade.")
        sys.stdout.write(spool_policy(upgrade=upgrade))
        return
    if upgrade:
        raise click.UsageError("--upgrade needs --spool.")
    name = provider or os.environ.get("JOBS_BACKUP_STORAGE_PROVIDER", "").strip()
    if not name:
        raise ConfigurationError(
            "JOBS_BACKUP_STORAGE_PROVIDER is not set", hint=f"set it, or give --provider: {', '.join(registry.KIND.names())}"
        )
    clean_prefix(os.environ.get("JOBS_BACKUP_PREFIX", "").strip())
    environment = registry.without_credentials(registry.load_class(name)[1], os.environ)
    store = ObjectStore(registry.load(name, environment), retry=Retry(RetryPolicy()))
    try:
        found = store.policy(environment, delete=with_delete, replay=with_replay, format_=format_ or "")
    except JobsBackupError as error:
        fail(error)
    sys.stdout.write(found.text)
