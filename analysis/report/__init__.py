"""Everything about a run on one page that needs nothing else."""

from analysis.report.page import report as report
