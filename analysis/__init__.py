"""What is in trained tasks: tables and figures from task folders alone."""

from analysis.norms import norms as norms
