"""The binarised nets, their layers and losses."""

from models.cnv import CNV, TOPOLOGIES, Topology
from models.losses import LOSSES, shortfall, squared_hinge

__all__ = ["CNV", "LOSSES", "TOPOLOGIES", "Topology", "shortfall", "squared_hinge"]
