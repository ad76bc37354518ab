"""The results of a sweep as files: rows, statistics, tables and figures."""

from report.figures import write_pictures, write_plots
from report.rows import OtherVersion, fault_in, read_rows, row_of, to_line, write_rows
from report.summaries import summarize, summary_json
from report.tables import compared_names, markdown
