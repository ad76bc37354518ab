"""The binarised nets, their layers and losses."""

from models.cnv import CNV, TOPOLOGIES, Topology
from models.losses import LOSSES, squared_hinge

__all__ = ["CNV", "LOSSES", "TOPOLOGIES", "Topology", "squared_hinge"]
