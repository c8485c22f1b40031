"""Errors that travel between processes as they are, whatever their constructors take."""

from __future__ import annotations

from typing import Any


class Portable(Exception):
    """Base of errors of our own: a pickle has an error's text and attributes, and does not call its constructor.

    By Exception's own pickle the constructor is called with the text alone. Where it takes more, the pool of processes
    that a task ran in then breaks, and says so instead of what went wrong.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _made, (type(self), self.args), self.__dict__


def _made(kind: type[BaseException], args: tuple[object, ...]) -> BaseException:
    return kind.__new__(kind, *args)
