"""Engines: where the independent tasks of a workflow run. A task is a function of a module and one argument.

An engine takes no part in what a task does, so results are the same on all; they come in the order of completion.
Tasks and results travel as pickles. A task that raises ends the run with its error; a lost process, with EngineFailed.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import pickle
import signal
import sys
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import chain
from typing import Any, Protocol, TypeVar

from batch_workflows._objects_errors import EngineFailed

T = TypeVar("T")
R = TypeVar("R")
_PR_SET_PDEATHSIG = 1
_GC_THRESHOLD = 100_000
"""New objects between two looks for cycles: documents make many objects and no cycles (see cli.worker)."""
IDLE_S = 1.0
"""A person who cancels a run waits no longer than this for it to be seen."""
_SPARK_JOBS = 256
"""At the same time: a thread of the driver each."""
_THREAD_LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Engine(Protocol):
    """Runs tasks."""

    name: str
    parallel: int
    """Tasks that run at the same time."""
    shares_files: bool
    """Whether tasks see the files of this process."""

    def map(
        self, function: Callable[[T], R], tasks: Iterable[T], idle: Callable[[], None] | None = None
    ) -> Iterator[R]:
        """Run `function` for every task and yield the results as they come; leaving early cancels the rest.

        `idle` is called about every second in which none came, where tasks run elsewhere; it may raise to end them.
        """

    def close(self) -> None:
        """End the engine's processes; safe to call twice."""


class InlineEngine:
    """Runs tasks one after the other in the caller's own process: for little work, and for debugging."""

    name, parallel, shares_files = "inline", 1, True

    def map(
        self, function: Callable[[T], R], tasks: Iterable[T], idle: Callable[[], None] | None = None
    ) -> Iterator[R]:
        """Run `function` for every task, in order."""
        return map(function, tasks)

    def close(self) -> None:
        """Nothing to end."""


class LocalEngine:
    """A pool of processes on this machine. They die with the process that made them, also by kill -9."""

    name, shares_files = "local", True

    def __init__(self, processes: int = 0) -> None:
        """`processes`: 0 is one per processor that this process may use. None is started before the first task."""
        self.parallel = processes or usable_processors()
        self._pool: ProcessPoolExecutor | None = None

    def map(
        self, function: Callable[[T], R], tasks: Iterable[T], idle: Callable[[], None] | None = None
    ) -> Iterator[R]:
        """Run `function` for every task; tasks are taken from the iterable only as processes become free."""
        if self._pool is None:
            # Spawned, not forked: LMDB and gRPC do not survive a fork.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(
                self.parallel, mp_context=context, initializer=_begin_worker, initargs=(os.getpid(),)
            )
        pool, job = self._pool, partial(_run, function)
        # Of each process one task in work and one at hand.
        completed = _completed(lambda task: pool.submit(job, task), tasks, lambda: 2 * self.parallel, idle)
        try:
            yield from completed
        except BrokenProcessPool as error:
            self.close()
            raise EngineFailed(
                "a process of the pool was killed (for want of memory? the kernel's log says) or did not start; "
                "nothing was published; run it again, if need be with fewer processes"
            ) from error
        finally:
            completed.close()

    def close(self) -> None:
        """End the processes, also in the middle of a task."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        workers = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()


class SparkEngine:
    """Tasks on Apache Spark: `local[N]` in this process's JVM, or a cluster (see OPERATIONS.md).

    Needs the extra `spark` (pyspark) and Java 17. Executors import this project: it must be installed there.
    """

    name = "spark"

    def __init__(self, master: str = "", settings: dict[str, str] | None = None) -> None:
        """`master` is as spark-submit takes it; "": as Spark's own configuration says, else all processors here.

        Raises EngineFailed without pyspark or Java.
        """
        try:
            from pyspark.sql import SparkSession
        except ImportError as error:
            raise EngineFailed(
                f"the Spark engine needs pyspark ({error}): install the extra, pip install 'adsindex[spark]'"
            ) from error
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        builder = SparkSession.builder.appName("adsindex").config("spark.ui.showConsoleProgress", "false")
        builder = builder.config("spark.task.maxFailures", "4").config("spark.ui.enabled", "false")
        if master or "SPARK_CONF_DIR" not in os.environ:
            builder = builder.master(master or "local[*]")
        for name, value in (settings or {}).items():
            builder = builder.config(name, value)
        try:
            self._session = builder.getOrCreate()
        except Exception as error:  # py4j and the gateway raise many kinds; all mean that there is no Spark
            raise EngineFailed(f"Spark does not start ({type(error).__name__}: {error}); it needs Java 17") from error
        self._context: Any = self._session.sparkContext
        self._context.setLogLevel("ERROR")
        self.parallel = int(self._context.defaultParallelism)
        self.shares_files = str(self._context.master).startswith("local")

    def map(
        self, function: Callable[[T], R], tasks: Iterable[T], idle: Callable[[], None] | None = None
    ) -> Iterator[R]:
        """Run `function` for every task as a job of its own, some at the same time; each result comes when it is there.

        One job for all would give nothing before its end, and could be told to stop by nobody.
        """
        group = f"adsindex-{uuid.uuid4().hex}"

        def run(task: T) -> R:
            self._context.setJobGroup(group, "adsindex", interruptOnCancel=True)
            results: list[R] = self._context.parallelize([task], 1).map(function).collect()
            return results[0]

        def at_once() -> int:  # executors come and go
            return min(_SPARK_JOBS, 2 * max(self.parallel, int(self._context.defaultParallelism)))

        jobs = ThreadPoolExecutor(_SPARK_JOBS, thread_name_prefix="spark-job")
        try:
            yield from _completed(lambda task: jobs.submit(run, task), tasks, at_once, idle)
        except Exception as error:  # py4j wraps whatever a task raised
            if type(error).__module__.partition(".")[0] not in ("py4j", "pyspark"):
                raise
            raise EngineFailed(f"a task on Spark failed: {_cause(str(error))}") from error
        finally:
            self._context.cancelJobGroup(group)
            jobs.shutdown(cancel_futures=True)

    def close(self) -> None:
        """Stop the Spark application."""
        self._session.stop()


def open_engine(name: str, *, processes: int = 0, master: str = "") -> Engine:
    """Return the engine of a name: local, inline or spark. Raises EngineFailed."""
    if name == "inline" or (name == "local" and processes == 1):
        return InlineEngine()
    if name == "local":
        return LocalEngine(processes)
    if name == "spark":
        return SparkEngine(master)
    raise EngineFailed(f"no engine {name!r}; there are local, inline and spark")


def _completed(
    submit: Callable[[T], Future[R]], tasks: Iterable[T], at_once: Callable[[], int], idle: Callable[[], None] | None
) -> Generator[R, None, None]:
    """Yield results as they come, with `at_once()` tasks submitted; what has not begun is cancelled in the end."""
    waiting = iter(tasks)
    running: set[Future[R]] = set()
    try:
        while True:
            while len(running) < at_once():
                try:
                    task = next(waiting)
                except StopIteration:
                    break
                running.add(submit(task))
            if not running:
                return
            done, running = wait(running, None if idle is None else IDLE_S, FIRST_COMPLETED)
            if not done and idle is not None:
                idle()
            for future in done:
                yield future.result()
    finally:
        for future in running:
            future.cancel()


def for_tasks(tasks: Iterable[T], many: Callable[[T], bool], processes: int = 0) -> tuple[Iterable[T], Engine]:
    """Return the tasks, and an engine of this machine for them: a pool of `processes` (0: one per processor) if there
    is one among them of which `many` says that there are many; else the caller's own process, at once."""
    ahead, rest = list[T](), iter(tasks)
    if processes != 1:
        for task in rest:
            ahead.append(task)
            if many(task):
                return chain(ahead, rest), LocalEngine(processes)
    return chain(ahead, rest), InlineEngine()


def usable_processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _run(function: Callable[[T], R], task: T) -> R:
    """Run a task in a process of the pool. An error that cannot travel home would break the pool: its words do."""
    try:
        return function(task)
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except (TypeError, AttributeError, pickle.PicklingError):
            raise EngineFailed(f"a task failed with {type(error).__name__}: {error}") from error
        raise


def _begin_worker(parent: int) -> None:
    """Bind a worker's life to its parent's, and keep it to one processor."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    for name in _THREAD_LIMITS:
        os.environ[name] = "1"
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD, 20, 20)


def _cause(text: str) -> str:
    """Return the Python error in what py4j says, its last line that names one."""
    lines = [line.strip() for line in text.splitlines()]
    named = [line for line in lines if "Error: " in line or "Exception: " in line]
    return named[0][:500] if named else text[:500]
