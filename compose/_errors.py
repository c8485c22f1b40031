"""What can go wrong with the servers of the stack.

StackError                 any of them; the text says which server, where its log is, and what to do
├── ServerMissing          a program is not installed: Java, Maven or MariaDB; `install` names the packages
├── PortTaken              the remembered port is used by another process
└── ServerFailed           the server, or a tool that it needs, ran and did not do what it should
"""

from __future__ import annotations


class StackError(Exception):
    """A server of the stack cannot be started, stopped or found."""


class ServerMissing(StackError):
    """A program that the server needs is not on this machine."""

    def __init__(self, text: str, packages: tuple[str, ...]) -> None:
        super().__init__(text)
        self.packages = packages

    def __reduce__(self) -> tuple[type[ServerMissing], tuple[str, tuple[str, ...]]]:
        return type(self), (str(self), self.packages)


class PortTaken(StackError):
    """The port that clients of this server know is used by somebody else."""


class ServerFailed(StackError):
    """The server exited or did not become ready; the text ends with lines of its log."""
