"""The choice of decomposition and rank per layer."""

from analysis.selection.changes import Change as Change
from analysis.selection.changes import gradients as gradients
from analysis.selection.choose import choose as choose
from analysis.selection.plan import Plan as Plan
