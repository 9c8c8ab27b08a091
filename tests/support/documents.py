"""The examples in the documentation."""

from __future__ import annotations

import re
from pathlib import Path

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(document: Path, *languages: str) -> list[tuple[str, str]]:
    """(language, text) of each example in the document."""
    return [(language, text) for language, text in BLOCK.findall(document.read_text()) if language in languages]
