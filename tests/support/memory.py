"""Peak memory of a command."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence

# On Linux, the peak includes the memory before `exec`, here that of the tests: so a small process starts the command.
_MEASURE = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdin=subprocess.DEVNULL).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


def peak_memory(command: Sequence[str], env: Mapping[str, str]) -> int:
    """Run a command that must succeed; return its peak resident memory in KiB."""
    measured = [sys.executable, "-I", "-S", "-c", _MEASURE, *command]
    result = subprocess.run(measured, env=dict(env), capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr
    return int(result.stdout.splitlines()[-1])
