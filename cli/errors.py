"""The errors that a command turns into one sentence instead of a traceback."""

from __future__ import annotations


def known_errors() -> tuple[type[Exception], ...]:
    """Return every package's base error: faults of input or surroundings, not bugs."""
    from argus import ArgusError
    from batch_workflows import BatchError
    from benchmarks import BenchmarkError
    from catalog import CatalogError
    from cli.runtime import CommandError
    from cli.settings import SettingsError
    from compose import StackError
    from debug_ui import DebugUIError
    from gateway import GatewayError
    from manas import ManasError
    from messaging import MessagingError
    from storage_repo import RepoError
    from updater import UpdaterError

    return (
        ArgusError, BatchError, BenchmarkError, CatalogError, CommandError, DebugUIError,
        GatewayError, ManasError, MessagingError, RepoError, SettingsError, StackError, UpdaterError,
    )  # fmt: skip
