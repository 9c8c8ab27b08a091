"""`jobs-backup-decrypt`: decrypt a downloaded object. Needs the key, but no provider."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from pathlib import Path
from typing import BinaryIO, Final, NoReturn

import click

from jobs_backup.errors import JobsBackupError
from jobs_backup.model import Body
from jobs_backup.sdk import printable
from jobs_backup_encryption.format import DecryptedBody
from jobs_backup_encryption.keys import Keys

_BLOCK: Final = 1 << 20
_NOT_DONE: Final = 1
_MISUSED: Final = 2


class _FileBody(Body):
    def __init__(self, path: Path) -> None:
        self._path = path
        self.size = path.stat().st_size

    def open(self) -> BinaryIO:
        return self._path.open("rb")


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(file: Path) -> None:
    """Decrypt FILE, an object whose key ends in .enc, to standard output. All of it is verified before any of it is output: nothing
    of a changed object is (exit code 1).

    The key comes from JOBS_BACKUP_ENCRYPTION_KEY, or from the file named by JOBS_BACKUP_ENCRYPTION_KEY_FILE.

    \b
    Example:
      jobs-backup-decrypt 1772600767_1772600776_ws_0b1f6a0e.json.gz.enc | gzip -dc
    """
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison] - another file may have its number
        _end("standard output is closed", _MISUSED)
    if not file.is_file():
        _end(f"{file} is not a regular file, but must be read twice: download the object into one", _MISUSED)
    try:
        content = DecryptedBody(_FileBody(file), Keys.from_environment(os.environ), str(file))
        content.crc32c()  # reads, and so verifies, all of it
        # Not through sys.stdout: at exit, Python would try to write what is left in its buffer.
        with content.open() as reader, open(1, "wb", closefd=False) as output:
            shutil.copyfileobj(reader, output, _BLOCK)
    except JobsBackupError as error:
        _end(error.one_line(), _NOT_DONE if error.retryable else _MISUSED)
    except BrokenPipeError:
        sys.exit(0)  # the reader closed early
    except OSError as error:
        _end(f"{error.filename or 'standard output'}: {error.strerror}", _NOT_DONE)


def _end(message: str, code: int) -> NoReturn:
    with contextlib.suppress(OSError):  # standard error may be closed too
        click.echo(f"jobs-backup-decrypt: {printable(message)}", err=True)
    sys.exit(code)
