"""Reads answers whose numbers are not numbers: one odd entry would fail the whole list that it is in, or a write that succeeded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

_NUMBERS: Final = ("integer", "long", "float", "double")


class Parsers:
    """Takes the place of the SDK's factory of parsers; there is no option for numbers, as there is for times."""

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
