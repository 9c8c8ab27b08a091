"""`jobs-backup-decrypt`: an object that was downloaded, as it was before it was encrypted. Needs the key, and no provider."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import BinaryIO

import click

from jobs_backup.errors import JobsBackupError
from jobs_backup.model import Body
from jobs_backup_encryption.format import DecryptedBody
from jobs_backup_encryption.keys import Keys

_BLOCK = 1 << 20


class _FileBody(Body):
    def __init__(self, path: Path) -> None:
        self._path = path
        self.size = path.stat().st_size

    def open(self) -> BinaryIO:
        return self._path.open("rb")


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(file: Path) -> None:
    """Decrypt FILE, an object whose key ends in .enc, to standard output: all of it, or an error where it was changed.

    The key is that of JOBS_BACKUP_ENCRYPTION_KEY, or of the file JOBS_BACKUP_ENCRYPTION_KEY_FILE.

    \b
    Example:
      jobs-backup-decrypt 1772600767_1772600776_ws_0b1f6a0e.json.gz.enc | zcat
    """
    try:
        with DecryptedBody(_FileBody(file), Keys.from_environment(os.environ), str(file)).open() as reader:
            shutil.copyfileobj(reader, sys.stdout.buffer, _BLOCK)
    except JobsBackupError as error:
        click.echo(f"jobs-backup-decrypt: {error.one_line()}", err=True)
        sys.exit(2)
