"""The binarised nets, their layers and losses."""

import logging

# Brevitas imports it, and on a machine without a GPU it would report that at every start
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)

from models.cnv import CNV, TOPOLOGIES, Topology  # noqa: E402
from models.losses import LOSSES, shortfall, squared_hinge  # noqa: E402
