"""Remove the machine's proxies, which the tests do not use: their servers are all on the machine itself.

Importing this removes them, since servers start before any test's own fixtures. Only pip gets them back.
"""

from __future__ import annotations

import os
from typing import Final

_NAMES: Final = ("http_proxy", "https_proxy", "all_proxy", "ftp_proxy", "no_proxy")
REMOVED: Final = {name: os.environ.pop(name) for name in list(os.environ) if name.lower() in _NAMES}
