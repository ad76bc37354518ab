"""Saving a training, and going on with one: to the bit as if it had not been interrupted."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from common import UserError, digest, keep_old
from engine import checkpoints
from engine.batches import EvalBatches
from engine.packing import pack

SAVE_SHARE = 0.05  # of the time may go to saving; so short epochs are not saved one by one


def saved_state(sess, seed):
    """(path, dict) of the checkpoint to resume: the trained one, or else the packed net of the last finished cycle.

    UserError if there is neither, or no cycle follows the packed net.
    """
    path, packed = checkpoints.path_of(sess, seed), checkpoints.packed_path_of(sess, seed)
    if path.is_file() or not packed.is_file():
        return path, checkpoints.read_state(path)
    state = checkpoints.read_state(packed)
    options = state.get("options", {})
    within_training = "threads" in state and state["epoch"] < options["epochs"]
    if not within_training or state["epoch"] % (options["epochs"] // options["cycles"]):
        raise UserError(
            f"{path} is missing, and no further cycle follows the packed net beside it: "
            f"--pretrained {packed} starts a new training from that"
        )
    return packed, state


def check_same(path, saved, made_of, say):
    """UserError if a training would continue with other images or another teacher.

    Says so if another thread count, device or precision changes the numbers.
    """
    for key, what, hint in (
        ("images", "on other images", "--data names their folder"),
        ("teacher", "with another teacher", "restore its file"),
    ):
        if saved.get(key, made_of[key]) != made_of[key]:
            raise UserError(f"{path} was trained {what} ({saved[key]}, here {made_of[key]}): {hint}")
    for key, how, hint in (
        ("threads", "with {} threads", "OMP_NUM_THREADS={} keeps them"),
        ("arithmetic", "on {}", "--bf16 and --no-bf16 choose the precision"),
    ):
        before, now = saved.get(key, made_of[key]), made_of[key]
        if before != now:
            say(
                f"warning: {path} was trained {how.format(before)}, now {now}: "
                f"the numbers differ in their last bits ({hint.format(before)})"
            )


@dataclass
class Keeper:
    """Saves a training: at the end of each cycle, and after each pass, unless saving would then take too much time.

    After each cycle, where there are several, it also writes the packed net.
    """

    path: Path
    options: dict
    made_of: (
        dict  # digests of the training images and of the teacher's file; what the numbers depend on, see check_same
    )
    clean: EvalBatches  # all test or held-out images, without a fault
    epoch: int  # the last that is saved
    holder: Path | None  # its file; None: nothing is saved yet, and saving renames the files of an earlier training
    due: float = 0.0  # time.monotonic() before which a pass is not saved

    def keep(self, net, training, log):
        """Save the training after a pass, if it is time."""
        epoch = log[-1]["epoch"]
        if not self.ended_cycle(epoch) and time.monotonic() < self.due:
            return
        if self.holder is None:
            checkpoints.keep_olds(self.path)
        began = time.monotonic()
        checkpoints.save(self.path, self.state(net, training, log))
        self.epoch, self.holder, ended = epoch, self.path, time.monotonic()
        self.due = ended + (ended - began) / SAVE_SHARE
        self.pack_cycle()

    def ended_cycle(self, epoch):
        """The number of the cycle that ends with an epoch, counted from 1; 0 if none does."""
        cycle, rest = divmod(epoch * self.options["cycles"], self.options["epochs"])
        return 0 if rest else cycle

    def pack_cycle(self):
        """At the end of one of several cycles, write the packed net of the checkpoint."""
        cycle, packed = self.ended_cycle(self.epoch), checkpoints.packed_path(self.path)
        if not cycle or self.options["cycles"] == 1:
            return
        if cycle == 1:
            keep_old(packed)
            keep_old(packed.with_suffix(".txt"))
        which = "held-out" if self.options["holdout"] else "test"
        about = f"after cycle {cycle} of {self.options['cycles']}"
        with torch.random.fork_rng(devices=[]):  # loading a net draws random numbers
            pack(self.path, checkpoints.load_net(self.path), self.clean, which, about)

    def pack_lost_cycle(self):
        """The same, if a kill came between saving the checkpoint and writing its packed net."""
        if self.holder != self.path:
            return
        try:
            packed_from = checkpoints.read_state(checkpoints.packed_path(self.path)).get("packed_from")
        except UserError:  # missing or damaged
            packed_from = None
        if packed_from != digest(self.path.read_bytes()):
            self.pack_cycle()

    def held(self, more=""):
        """Text that says what an interrupted training has saved."""
        return f"{self.holder} holds epoch {self.epoch}{more}" if self.holder else "no epoch was finished"

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
        }
