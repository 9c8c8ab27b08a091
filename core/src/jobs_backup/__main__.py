"""Entry point of `jobs-backup` and `python -m jobs_backup`."""

from __future__ import annotations

import sys

from jobs_backup import why_not_here


def main() -> None:
    """Run the command, or exit with a one-line reason on an unsupported platform."""
    if reason := why_not_here():
        sys.exit(f"jobs-backup: {reason} [UnsupportedPlatform]")
    try:
        from jobs_backup.cli import main as run  # noqa: PLC0415 - it imports what the platform may lack

        run()
    except KeyboardInterrupt:  # before or after the command itself, which handles it
        sys.exit(130)


if __name__ == "__main__":
    main()
