"""Run one function over many cases in several processes, with a progress line and clear ends."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from mvl_dist.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")
Begin = Callable[[int], None]

_PLAIN_LINE_EVERY_S = 10.0
# One case a process is the parallelism; a pool of threads in each would fight over the cores.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLOSC_NTHREADS")
# Case after case needs arrays of the same sizes. By glibc's default each is asked of the kernel
# anew, whose zeroing of pages took a fifth of a conversion's CPU time, a third of verifying's and
# half of a loader's decoding.
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
_OUT_OF_MEMORY = (
    "ran out of memory or was killed; cases already written are kept: "
    "run the same command again with fewer --workers"
)


def default_workers() -> int:
    """The CPU cores that this process may use (Slurm grants fewer than the machine has)."""
    return len(os.sched_getaffinity(0))


@contextlib.contextmanager
def worker_environment(threads: int) -> Iterator[None]:
    """What processes started meanwhile find in their environment: threads, and memory kept."""
    wanted = {**dict.fromkeys(_THREADS, str(threads)), **_KEEP_MEMORY}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _begin_worker(begin: Begin | None, started: Any) -> None:
    _end_with_parent()
    with started.get_lock():
        number = started.value
        started.value += 1
    if begin is not None:
        begin(number)


def _end_with_parent() -> None:
    """A worker whose parent was killed -9 would wait for its next job for ever."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[], None]]:
    """Give a function to call after every case: a bar on a terminal, else a line now and then."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

        columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            row = bar.add_task(what, total=total)
            yield lambda: bar.advance(row)
        return
    done, last = 0, time.monotonic()

    def line() -> None:
        nonlocal done, last
        done += 1
        if done == total or time.monotonic() - last > _PLAIN_LINE_EVERY_S:
            last = time.monotonic()
            print(f"{what}: {done}/{total}", file=sys.stderr, flush=True)

    yield line


def run_cases(
    work: Callable[[Job], Result],
    jobs: Sequence[Job],
    workers: int,
    what: str,
    begin: Begin | None = None,
    threads: int = 1,
    pool: ProcessPoolExecutor | None = None,
) -> Iterator[Result]:
    """Yield `work(job)` of every job as it comes, each job in one of `workers` processes.

    Only two jobs a worker are under way, so memory does not grow with their number. The first
    exception ends it: waiting jobs are dropped, running ones finish.

    Args:
        begin: called once in each process before its first job, with the process's number from 0.
        threads: of each process, where there are several.
        pool: `processes` that are there already, `begin` and `threads` are theirs then; without it
            they are started, if more than one is of use, and ended.

    Raises:
        UserError: a worker was killed or out of memory; or what `work` raised.
    """
    if not jobs:
        return
    try:
        with _progress(what, len(jobs)) as advance:
            if workers == 1 or len(jobs) == 1:
                if begin is not None:
                    begin(0)
                results: Iterator[Result] = map(work, jobs)
            else:
                results = _in_processes(work, jobs, min(workers, len(jobs)), begin, threads, pool)
            for result in results:
                advance()
                yield result
    except (BrokenProcessPool, MemoryError) as error:
        raise UserError(f"{what}: a process {_OUT_OF_MEMORY}") from error


@contextlib.contextmanager
def processes(
    workers: int, begin: Begin | None = None, threads: int = 1
) -> Iterator[ProcessPoolExecutor | None]:
    """Processes for `run_cases`, which start when they are first needed and end with the block.

    None for one worker: its cases are worked on in the process that asks.
    """
    if workers == 1:
        yield None
        return
    context = multiprocessing.get_context("spawn")
    first = (begin, context.Value("i", 0))
    with (
        worker_environment(threads),
        ProcessPoolExecutor(
            workers, mp_context=context, initializer=_begin_worker, initargs=first
        ) as pool,
    ):
        try:
            yield pool
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _in_processes(
    work: Callable[[Job], Result],
    jobs: Sequence[Job],
    workers: int,
    begin: Begin | None,
    threads: int,
    shared: ProcessPoolExecutor | None,
) -> Iterator[Result]:
    own = processes(workers, begin, threads)
    waiting = iter(jobs)
    with own if shared is None else contextlib.nullcontext(shared) as pool:
        assert pool is not None
        running: set[Future[Any]] = {
            pool.submit(work, job) for job in itertools.islice(waiting, 2 * workers)
        }
        try:
            while running:
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield future.result()
                    for job in waiting:
                        running.add(pool.submit(work, job))
                        break
        finally:
            for future in running:
                future.cancel()
