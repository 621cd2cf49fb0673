"""What is in trained tasks, and what new ones should be: tables, figures, smaller tasks and plans."""

from analysis.norms import norms as norms
from analysis.pruning import prune as prune
from analysis.selection import Plan as Plan
from analysis.selection import choose as choose
from analysis.selection import gradients as gradients
from analysis.similarity import similarity as similarity
