"""Records in; evidence, tables and numbers in prose out. Without torch, not even through another module."""

from icrm_lib.measures.statistics import holm
from icrm_lib.report.cells import compare, estimate, load_cells
from icrm_lib.report.evidence import contrasts_table, summary_table

__all__ = ["compare", "contrasts_table", "estimate", "holm", "load_cells", "summary_table"]
