"""Everything that runs a net: batches, training steps, the evaluation, checkpoint files, export, processes."""

from engine import checkpoints, resuming
from engine.batches import EvalBatches, TrainBatches, calibrated_on, scale, state_of, training_digest
from engine.evaluation import Measured, Score, calibration_of, evaluate, faulty_net, measure, predict, score, to_score
from engine.finn_export import check_export_packages, export
from engine.packing import pack
from engine.processes import Processes
from engine.test_set import TestSet
from engine.training import Training, bf16_is_fast, compiled, lessons, take_norms_anew, train_pass
