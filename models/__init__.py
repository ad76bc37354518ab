"""The binarised nets, their layers and losses."""

import logging

# Brevitas imports this module, which logs a warning at every start on a machine without a GPU
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)

from models.cnv import CNV, TOPOLOGIES, Topology  # noqa: E402
from models.losses import LOSSES, distillation, shortfall, squared_hinge  # noqa: E402
