"""The processes that torchrun started."""

import contextlib
import ctypes
import os
import signal
import sys
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from tqdm import tqdm

from common import UserError, processes, rank
from engine.evaluation import to_score

TIMEOUT = timedelta(days=1)  # of collective operations; long, since one process may be much slower


def _end_with_parent():
    """Make Linux end this process when torchrun, its parent, ends."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


class Processes:
    """The processes that torchrun started, or this one alone: printing, shares of the work, sums over processes."""

    def __init__(self):
        self.rank, self.number = rank(), processes()
        local = int(os.environ["LOCAL_RANK"]) if self.number > 1 else 0
        self.device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
        if self.device.type == "cuda":
            wanted, there = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
            if wanted > there:  # checked by every process, because only the first one prints errors
                raise UserError(f"{wanted} processes want a GPU each, and {there} are there")
            torch.cuda.set_device(self.device)
        if self.number > 1:
            _end_with_parent()
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo", timeout=TIMEOUT)

    def print(self, line):
        if self.rank == 0:
            print(line, flush=True)

    def bar(self, batches, title, total):
        """`batches` with a progress bar; only the first process shows it, and only on a terminal."""
        return tqdm(batches, title, total, leave=False, disable=None if self.rank == 0 else True)

    def share(self, rows):
        """This process's share of rows: every n-th, n being the number of processes."""
        return rows[self.rank :: self.number]

    def sum(self, tensor):
        if self.number > 1:
            dist.all_reduce(tensor)
        return tensor

    def total(self, score):
        """The sum of all processes' scores."""
        return to_score(self.sum(torch.tensor(score, dtype=torch.float64, device=self.device)))

    def same_buffers(self, net):
        """Copy the first process's batch-norm statistics to all, because its net is the one that is saved."""
        if self.number > 1:
            for buffer in net.buffers():
                dist.broadcast(buffer, 0)

    @contextmanager
    def first_alone(self):
        """The first process runs the block before the others; if it fails there, they end without a message."""
        failed = torch.ones(1, device=self.device)
        if self.rank > 0 and self.sum(torch.zeros_like(failed)).item():
            sys.exit(UserError.status)
        try:
            yield
            failed.zero_()
        finally:
            if self.rank == 0:
                self.sum(failed)

    def wait(self):
        """Wait until all processes have come here."""
        if self.number > 1:
            dist.barrier()

    def close(self):
        if self.number > 1:
            dist.destroy_process_group()
