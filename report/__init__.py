"""Nets under test, and the results of a sweep as files: rows, statistics, tables and figures."""

from report.comparisons import campaign_size, changes, confusion, mcnemar
from report.critical import draw_critical, flips_needed, read_critical, write_critical
from report.energy import draw_energy, read_points
from report.figures import write_pictures, write_plots
from report.rows import OtherVersion, fault_in, name_of, read_rows, row_of, to_line, write_rows
from report.seeds import write_seeds
from report.summaries import summarize, summary_json
from report.tables import compared_names, markdown
from report.tested_net import TestedNet
