"""What mends: the table of repairs of broken bits, and what they have learned."""

from repairs.learned import learned_state, made_by
from repairs.table import REPAIRS, ImpossibleRepair, Repair, RepairCost, fault_of, repaired, with_fault
