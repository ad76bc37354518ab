"""Repairs of broken bits: the table of all repairs, and what some learn from training images."""

from repairs.learned import is_learned, learned_state, made_by
from repairs.table import REPAIRS, ImpossibleRepair, Repair, RepairCost, fault_of, repaired, with_fault
