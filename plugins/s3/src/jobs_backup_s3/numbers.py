"""Tolerates invalid numbers in answers: one odd entry would fail a whole listing, or a write that succeeded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

_NUMBERS: Final = ("integer", "long", "float", "double")


class Parsers:
    """Replaces the SDK's parser factory. The SDK has an option for parsing times, but none for numbers."""

    def __init__(self, factory: Any) -> None:
        self._factory = factory

    def set_parser_defaults(self, **defaults: Any) -> None:
        """Called by the SDK."""
        self._factory.set_parser_defaults(**defaults)

    def create_parser(self, protocol_name: str) -> Any:
        """Called by the SDK, for each client."""
        parser = self._factory.create_parser(protocol_name)
        for kind in _NUMBERS:
            handler = f"_handle_{kind}"
            if handle := getattr(parser, handler, None):
                setattr(parser, handler, _lenient(handle))
        return parser


def _lenient(handle: Callable[..., Any]) -> Callable[..., Any]:
    def number(*arguments: Any) -> Any:
        try:
            return handle(*arguments)
        except (ValueError, TypeError):
            return None

    return number
