"""Saving a training, and going on with one: to the bit as if it had not been interrupted."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from common import UserError, keep_old
from engine import checkpoints
from engine.batches import EvalBatches
from engine.packing import pack

SAVE_SHARE = 0.05  # of the time may go to saving; so short epochs are not saved one by one


def saved_state(sess, seed):
    """(path, dict) of the checkpoint to resume: the trained one, or else the packed net of the last finished cycle."""
    path, packed = checkpoints.path_of(sess, seed), checkpoints.packed_path_of(sess, seed)
    if path.is_file() or not packed.is_file():
        return path, checkpoints.read_state(path)
    state = checkpoints.read_state(packed)
    options = state.get("options", {})
    if "threads" not in state or state["epoch"] % (options["epochs"] // options["cycles"]):
        raise UserError(
            f"{path} is missing, and {packed} is not from the end of a cycle: "
            "--pretrained starts a new training from it"
        )
    return packed, state


def check_same(path, saved, made_of, say):
    """UserError if a training would continue with other images or another teacher.

    Says so if another thread count changes the numbers.
    """
    for key, what, hint in (
        ("images", "on other images", "--data names their folder"),
        ("teacher", "with another teacher", "restore its file"),
    ):
        if saved.get(key, made_of[key]) != made_of[key]:
            raise UserError(f"{path} was trained {what} ({saved[key]}, here {made_of[key]}): {hint}")
    threads = torch.get_num_threads()
    if saved.get("threads", threads) != threads:
        say(
            f"warning: {path} was trained with {saved['threads']} threads, now {threads}: "
            f"the numbers differ in their last bits (OMP_NUM_THREADS={saved['threads']} keeps them)"
        )


@dataclass
class Keeper:
    """Saves a training: at the end of each cycle, and after each pass, unless saving would then take too much time.

    After each cycle, where there are several, it also writes the packed net.
    """

    path: Path
    options: dict
    made_of: dict  # digests of the training images and of the teacher's file
    clean: EvalBatches  # all test or held-out images, without a fault
    epoch: int  # the last that is saved
    new: bool  # nothing saved yet: the first saving renames the files of an earlier training to .old
    due: float = 0.0  # time.monotonic() before which a pass is not saved

    def keep(self, net, training, log):
        epoch, cycles = log[-1]["epoch"], self.options["cycles"]
        cycle_ends = epoch % (self.options["epochs"] // cycles) == 0
        if not cycle_ends and time.monotonic() < self.due:
            return
        if self.new:
            checkpoints.keep_olds(self.path)
            self.new = False
        began = time.monotonic()
        checkpoints.save(self.path, self.state(net, training, log))
        self.epoch, ended = epoch, time.monotonic()
        self.due = ended + (ended - began) / SAVE_SHARE
        if cycle_ends and cycles > 1:
            self.pack(epoch * cycles // self.options["epochs"])

    def held(self, more=""):
        """Text that says what an interrupted training has saved."""
        return f"{self.path} holds epoch {self.epoch}{more}" if self.epoch else "no epoch was finished"

    def pack(self, cycle):
        """Write the packed net of a cycle that has ended, counted from 1."""
        if cycle == 1:
            packed = checkpoints.packed_path(self.path)
            keep_old(packed)
            keep_old(packed.with_suffix(".txt"))
        which = "held-out" if self.options["holdout"] else "test"
        about = f"after cycle {cycle} of {self.options['cycles']}"
        with torch.random.fork_rng(devices=[]):  # loading a net draws random numbers
            pack(self.path, checkpoints.load_net(self.path), self.clean, which, about)

    def state(self, net, training, log):
        """The dict to save: all that bit-exact resuming needs."""
        net_state = net.state_dict()
        checkpoints.check_finite(f"after epoch {log[-1]['epoch']}", net_state)
        on_gpu = next(net.parameters()).device.type == "cuda"
        return {
            "net": net_state,
            "acc": log[-1]["test_top1"],
            "epoch": log[-1]["epoch"],
            "rng_state": torch.get_rng_state(),
            "cuda_rng_state": torch.cuda.get_rng_state() if on_gpu else None,
            "options": self.options,
            "optimizer": training.optimizer.state_dict(),
            "log": log,
            **self.made_of,
            "threads": torch.get_num_threads(),
        }
