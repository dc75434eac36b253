"""Continuous batching: a thread that owns the device and writes many texts at once, which come and go as they please."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from flaxllm.serving.batch import READ_A_STEP, Batch
from flaxllm.serving.errors import closing, failed, too_busy
from flaxllm.serving.job import Job

_log = logging.getLogger("flaxllm")


class Scheduler:
    """Jobs wait here for a row of the batch; its thread reads their prompts and writes their texts.

    `max_queue` bounds how many wait, except that any number may where none does yet.
    """

    def __init__(self, batch: Batch, max_queue: int = 64):
        self.batch, self.max_queue = batch, max_queue
        self._waiting: deque[Job] = deque()
        self._errands: deque[tuple[Callable, Future]] = deque()
        self._change = threading.Condition()
        self._some_cancelled = self._closing = False
        self._thread = threading.Thread(target=self._work, name="flaxllm-scheduler", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Let jobs wait for rows.

        Raises:
          ApiError: too many would wait, or the end is near.
        """
        with self._change:
            self._check_open()
            if self._waiting and len(self._waiting) + len(jobs) > self.max_queue:
                raise too_busy()
            self._waiting.extend(jobs)
            self._change.notify()

    def cancel(self, jobs: Sequence[Job]) -> None:
        """End jobs as soon as can be; those that have ended stay as they are."""
        with self._change:
            for job in jobs:
                job.cancelled = True
            self._some_cancelled = True
            self._change.notify()

    def run(self, errand: Callable[[], object]) -> Future:
        """Let the thread do something else with the device, between two steps.

        Raises:
          ApiError: too much waits already, or the end is near.
        """
        future = Future()
        with self._change:
            self._check_open()
            if len(self._errands) >= self.max_queue:
                raise too_busy()
            self._errands.append((errand, future))
            self._change.notify()
        return future

    def close(self) -> None:
        """End all jobs, and the thread."""
        with self._change:
            self._closing = True
            self._change.notify()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and not self._closing

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def _check_open(self) -> None:
        if self._closing:
            raise closing()

    def _work(self) -> None:
        try:
            while self._wait():
                try:
                    self._do_errands()
                    self._end_cancelled()
                    self._admit()
                    self.batch.step()
                except Exception:
                    _log.exception("a step of the server failed: the texts under way are lost")
                    self.batch.lose(failed())
        finally:
            self._end_all()

    def _wait(self) -> bool:
        """Wait until there is something to do. False at the end."""
        with self._change:
            while not (self._closing or self._errands or self._some_cancelled or self._waiting or not self.batch.is_idle):
                self._change.wait()
            return not self._closing

    def _do_errands(self) -> None:
        while self._errands:
            errand, future = self._errands.popleft()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(errand())
                except Exception as error:  # it is the other thread's
                    future.set_exception(error)

    def _end_cancelled(self) -> None:
        with self._change:
            if not self._some_cancelled:
                return
            self._some_cancelled = False
            gone = [job for job in self._waiting if job.cancelled]
            self._waiting = deque(job for job in self._waiting if not job.cancelled)
        for job in gone:
            job.on_end("cancelled")
        self.batch.end_cancelled()

    def _admit(self) -> None:
        """Read prompts, but no more at once than the texts under way can wait for."""
        budget = READ_A_STEP
        while budget > 0 and (self.batch.is_reading or self._waiting and self.batch.has_room):
            if not self.batch.is_reading:
                with self._change:
                    job = self._waiting.popleft()
                self.batch.begin(job)
            budget = self.batch.read(budget)

    def _end_all(self) -> None:
        with self._change:
            self._closing = True
            waiting, errands = list(self._waiting), list(self._errands)
            self._waiting.clear()
            self._errands.clear()
        for job in waiting:
            job.on_end(closing())
        for _, future in errands:
            if future.set_running_or_notify_cancel():
                future.set_exception(closing())
        self.batch.lose(closing())
