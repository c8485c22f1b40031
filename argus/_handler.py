"""The contract with a handler's author: a decorator with declarations, and a plain function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from argus._exceptions import DeclarationError, SourceUnavailable, UndeclaredRead
from argus._rows import Inputs
from catalog import Catalog, HandlerDeclaration

Value = Any
"""What a column holds, in Python: str, int, float, bool, bytes, list; times are integer microseconds."""


@dataclass(frozen=True, slots=True)
class SourceUse:
    """A handler's use of an external source.

    `key` is the input column whose value is looked up; `version` the one that says which version of the source's
    value this run must at least see (a content signal). Where either is null, there is nothing to look up.
    """

    source: str
    key: str
    version: str


@dataclass(frozen=True, slots=True)
class HandlerContext:
    """What a handler may use besides its inputs. It holds no clock and no randomness: handlers are pure."""

    catalog: Catalog
    row: str
    """Key of the root row."""
    sources: Mapping[str, Value | SourceUnavailable] = field(default_factory=dict)

    def source(self, name: str) -> Value | None:
        """Return what a declared source holds for this row; None if it holds nothing or there was nothing to ask.

        Raises SourceUnavailable, which a handler lets pass: its outputs then keep their previous values.
        """
        try:
            found = self.sources[name]
        except KeyError:
            raise UndeclaredRead(
                f"source {name!r} is not declared; add SourceUse({name!r}, key=..., version=...) to `sources`"
            ) from None
        if isinstance(found, SourceUnavailable):
            raise found
        return found


HandlerFunction = Callable[[Inputs, HandlerContext], Mapping[str, Value]]


class _Decorator(Protocol):
    def __call__(self, function: HandlerFunction, /) -> Handler: ...


@dataclass(frozen=True, slots=True)
class Handler:
    """A declared handler; calling it calls the function."""

    declaration: HandlerDeclaration
    function: HandlerFunction
    sources: tuple[SourceUse, ...] = ()

    @property
    def name(self) -> str:
        """Name of the function, as in the catalogue's `handler:NAME`."""
        return self.declaration.name

    def __call__(self, row: Inputs, context: HandlerContext) -> Mapping[str, Value]:
        return self.function(row, context)


def handler(
    *,
    root: str,
    watches: tuple[str, ...],
    writes: tuple[str, ...],
    reads: tuple[str, ...] = (),
    sources: tuple[SourceUse, ...] = (),
) -> _Decorator:
    """Declare a function as the handler of its name, run for rows of `root`.

    It is run again when a column of `watches` changes; `reads` are inputs whose change alone does not matter. It
    returns the columns of `writes`; one that it leaves out becomes null. Raises DeclarationError for an empty
    declaration; what depends on the catalogue is checked by `load_registry`.
    """

    def decorate(function: HandlerFunction) -> Handler:
        code = inspect.unwrap(function).__code__
        place = f"handler {function.__name__!r} ({code.co_filename}:{code.co_firstlineno})"
        declared: tuple[object, ...] = (watches, reads, writes)
        if any(isinstance(refs, str) for refs in declared):
            raise DeclarationError(f'{place}: watches, reads and writes are tuples of "table.column"; add a comma')
        if not watches or not writes:
            raise DeclarationError(f"{place}: declare at least one column in watches and one in writes")
        for use in sources:
            if missing := {use.key, use.version} - {*watches, *reads}:
                raise DeclarationError(
                    f"{place}: source {use.source!r} needs {sorted(missing)}; add it to watches or reads"
                )
        declaration = HandlerDeclaration(
            name=function.__name__,
            root=root,
            watches=watches,
            reads=reads,
            writes=writes,
            file=code.co_filename,
            line=code.co_firstlineno,
        )
        return Handler(declaration, function, sources)

    return decorate
