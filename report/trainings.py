"""What the nets of the sessions were trained for, and for how many epochs."""

import csv
from typing import NamedTuple

from common import UserError, digest
from engine import checkpoints
from repairs import repaired_cells_of

TABLE = "trainings.csv"  # in the results folder: trainings of nets whose checkpoints are not kept


class Training(NamedTuple):
    epochs: int
    purpose: str  # what the net was trained for
    source: str  # where this stands


def find_checkpoint(session):
    """(path, its dict) of the checkpoint that a session measured, packed or not; None if it is not at hand."""
    sess, seed, wanted = (session.same[column] for column in ("sess", "seed", "checkpoint"))
    for suffix in ("_tested_with_wsconv", "_tested_without_wsconv"):
        sess = sess.removesuffix(suffix)
    try:
        packed, trained = checkpoints.packed_path_of(sess, seed), checkpoints.path_of(sess, seed)
        state = checkpoints.read_state(packed) if packed.is_file() else {}
        if state.get("packed_from") == wanted:
            return packed, state
        if trained.is_file() and digest(trained.read_bytes()) == wanted:
            return trained, checkpoints.read_state(trained)
    except (UserError, OSError):  # a checkpoint that cannot be read is as good as none
        return None
    return None


def find_trainings(sessions, results):
    """{name of a session: Training}, from its checkpoint, or from trainings.csv of the results folder."""
    written = _written(results)
    found = {}
    for session in sessions:
        checkpoint = find_checkpoint(session)
        if checkpoint:
            path, state = checkpoint
            options = checkpoints.with_older_options(checkpoints.trained_as(path, state))
            found[session.name] = Training(state["epoch"], purpose_of(options), f"options kept in {path}")
        elif (session.name, session.same["checkpoint"]) in written:
            found[session.name] = written[session.name, session.same["checkpoint"]]
    return found


def _written(results):
    """{(session, checkpoint): Training} of trainings.csv; {} where there is none."""
    path = results / TABLE
    if not path.is_file():
        return {}
    found = {}
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        reader = csv.DictReader(file)
        for row in reader:
            if None in row or None in row.values() or not (row.get("epochs") or "").isdigit():
                continue
            source = f"{results.name}/{TABLE}, line {reader.line_num}"
            key = row.get("session"), row.get("checkpoint")
            found[key] = Training(int(row["epochs"]), row.get("trained_for") or "", source)
    return found


def purpose_of(options):
    """What a net was trained for, in words. options: of its training, as checkpoints.with_older_options gives them."""
    fault, bit = options.get("mem_fault", "baseline"), options.get("faulty_bit")
    broken = "any bit" if bit == "any" else f"bit {bit}"
    words = []
    if options["memory"]:
        words.append(str(repaired_cells_of({**options, "mem_fault": fault})))
    elif fault == "faulty":
        words.append(f"{broken} random")
    elif fault != "baseline":
        words.append(f"{broken} repaired by {fault}")
    if options["train_flip"]:
        words.append(f"{100 * options['train_flip']:g} % of the weights flipped")
    if options["train_noise"]:
        words.append(f"weight noise {options['train_noise']:g}")
    if options["margin"]:
        words.append(f"logit margin {options['margin']:g}")
    words = words or ["no fault"]
    if options["wsconv"]:
        words.append("weight standardisation")
    if options["pad"]:
        words.append(f"padded with {options['pad']}")
    if options["teacher"]:
        words.append("with a teacher")
    if options["precise_norms"]:
        words.append("precise norms")
    return "; ".join((["fine-tuned"] if options["pretrained"] else []) + words)
