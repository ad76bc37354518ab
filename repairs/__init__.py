"""Repairs of broken bits: the table of all repairs, and what some learn from training images."""

from repairs.apply import mended, repaired_cells_of, with_fault
from repairs.codes import PROTECTIONS
from repairs.learned import is_learned, learned_state, made_by, made_by_cells
from repairs.protected import protected_size, with_protection
from repairs.table import (
    REPAIRS,
    ImpossibleRepair,
    Repair,
    RepairCost,
    fault_of,
    repaired,
    with_repair,
)
