"""What runs a net: batches, training steps, the one evaluation, checkpoint files, export, processes."""

from engine import checkpoints
from engine.batches import EvalBatches, TrainBatches, scale, state_of
from engine.evaluation import Score, evaluate, measure, score, to_score
from engine.finn_export import check_export_packages, export
from engine.processes import Processes
from engine.training import Training, bf16_is_fast, compiled, train_pass

__all__ = [
    "EvalBatches",
    "Processes",
    "Score",
    "TrainBatches",
    "Training",
    "bf16_is_fast",
    "check_export_packages",
    "checkpoints",
    "compiled",
    "evaluate",
    "export",
    "measure",
    "scale",
    "score",
    "state_of",
    "to_score",
    "train_pass",
]
