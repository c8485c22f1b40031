"""The whole pipeline, or some of its stages, as threads of this process: for tests, dev runs and experiments.

The stages are the very ones that `up` starts as processes, on the same home.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from catalog import Catalog
from cli.backends import close_backends, open_backends
from cli.idle import IdleWatch, Outstanding, held_sentence, outstanding
from cli.runtime import CommandError, open_log, process_file
from cli.settings import stage_settings
from cli.stages import STAGES
from debug_ui.backends import Backends
from messaging.home import Home
from messaging.metrics import StageMetrics
from messaging.stage import StageContext
from messaging.switches import Switches

WITHOUT_UI = tuple(name for name in STAGES if name not in ("broker", "debug_ui", "reports", "workflows", "bases"))


class InProcess:
    """Runs stages as threads until left; `backends` looks at the same home."""

    def __init__(self, home: Home, catalog: Catalog, stages: Sequence[str] = WITHOUT_UI) -> None:
        self.home, self.catalog = home, catalog
        self.backends: Backends = open_backends(home, catalog)
        self._switches = Switches(self.backends.log)
        self._contexts: dict[str, StageContext] = {}
        self._threads: dict[str, threading.Thread] = {}
        self._failures: dict[str, BaseException] = {}
        self._names = list(stages)

    def __enter__(self) -> Self:
        try:
            for name in self._names:
                self.start(name)
        except BaseException:  # also a key pressed: whatever was started must not outlive us
            self._stop_all()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_all()

    def _stop_all(self) -> None:
        try:
            for name in list(self._threads):
                self.stop(name)
        finally:
            close_backends(self.backends)

    def start(self, name: str) -> None:
        """Start a stage and wait until it says that it is ready."""
        ready = threading.Event()
        file = process_file(self.home, f"{name}-0")

        def on_ready(port: int) -> None:
            import os

            import psutil

            born = psutil.Process().create_time()
            file.write(
                process=f"{name}-0", stage=name, worker=0, pid=os.getpid(), born=born, started_at=born, restarts=0,
                port=port, state="ready",
            )  # fmt: skip
            ready.set()

        context = StageContext(
            name=name,
            worker=0,
            home=self.home,
            catalog=self.catalog,
            log=open_log(self.home),
            metrics=StageMetrics(self.home.metrics, f"{name}-0"),
            stop=threading.Event(),
            ready=on_ready,
            code_version="in-process",
            settings=stage_settings(self.home),
        )

        def work() -> None:
            try:
                STAGES[name](context)
            except BaseException as error:
                self._failures[name] = error
                raise
            finally:
                context.log.close()

        thread = threading.Thread(target=work, name=name, daemon=True)
        self._contexts[name], self._threads[name] = context, thread
        thread.start()
        while not ready.wait(0.05):
            self._check()

    def stop(self, name: str) -> None:
        """Stop a stage in good order."""
        self._contexts[name].stop.set()
        self._threads.pop(name).join(20)
        process_file(self.home, f"{name}-0").path.unlink(missing_ok=True)

    def _check(self) -> None:
        for name, error in self._failures.items():
            raise CommandError(f"stage {name} failed: {error}") from error

    def outstanding(self) -> Outstanding:
        """Count what waits."""
        return outstanding(self.backends, self.backends.serving.stats()["positions"], self._switches, certain=True)

    def until_idle(self, timeout_s: float = 120.0) -> None:
        """Wait until nothing is outstanding.

        Raises CommandError saying which switch holds what when that is all that is left, what still waits after
        `timeout_s`, or which stage failed.
        """
        watch = IdleWatch()
        deadline = time.monotonic() + timeout_s
        while True:
            self._check()
            state = self.outstanding()
            if watch.look(state):
                if state.held:
                    raise CommandError(held_sentence(state.held))
                return
            if time.monotonic() > deadline:
                waiting = {place: count for place, count in state.waiting.items() if count}
                raise CommandError(f"not idle after {timeout_s:.0f} s; waiting: {waiting}")
            time.sleep(0.02)
