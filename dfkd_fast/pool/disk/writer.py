"""A thread that writes in the background, in order, so that training goes on meanwhile."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

PENDING = 8
"""batches that may wait; the next one blocks, so that a slow disk bounds the memory and not the other way round"""


class WriteQueue:
    """Runs jobs in the order of their arrival on one thread. After a failure none is run and all calls raise."""

    def __init__(self) -> None:
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue(PENDING)
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    def put(self, job: Callable[[], None]) -> None:
        """Run `job` after all jobs before it."""
        self._raise()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="pool writer", daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def drain(self) -> None:
        """Wait until every job has run."""
        self._jobs.join()
        self._raise()

    def close(self) -> None:
        """Let the jobs that wait finish and end the thread. Does not raise what they raised: `drain` does."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                if self._failure is None:
                    job()
            except Exception as error:
                self._failure = error
            finally:
                self._jobs.task_done()
        self._jobs.task_done()

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure


def on_host(fields: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Callable[[], None] | None]:
    """Fields as contiguous CPU tensors, and what to wait for before they are read: copies from a GPU are in flight."""
    device = next((values.device for values in fields.values() if values.is_cuda), None)
    if device is None:
        return {name: values.contiguous() for name, values in fields.items()}, None
    host = {name: torch.empty(values.shape, dtype=values.dtype, pin_memory=True) for name, values in fields.items()}
    for name, values in fields.items():
        host[name].copy_(values, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(device))
    return host, arrived.synchronize
