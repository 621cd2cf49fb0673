"""Figures, one kind a file; each takes a table and returns a matplotlib figure."""

from analysis.figures.canvas import save_figure as save_figure
from analysis.figures.norms import component_map as component_map
from analysis.figures.norms import layer_lines as layer_lines
from analysis.figures.norms import layer_map as layer_map
from analysis.figures.norms import layer_norms_figure as layer_norms_figure
from analysis.figures.plan import plan_figure as plan_figure
from analysis.figures.ranks import rank_lines as rank_lines
from analysis.figures.similarity import similarity_map as similarity_map
from analysis.figures.sweep import sweep_lines as sweep_lines
