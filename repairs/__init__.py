"""Repairs of broken bits: the table of all repairs, and what some learn from training images."""

from repairs.learned import learned_state, made_by, made_by_cells
from repairs.table import (
    REPAIRS,
    ImpossibleRepair,
    Repair,
    RepairCost,
    cells_repaired,
    fault_of,
    repaired,
    with_fault,
    with_repair,
)
