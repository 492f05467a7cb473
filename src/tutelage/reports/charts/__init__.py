"""Charts as records, and the two ways to draw them: into a page and into files.

Public names: `Chart`, `Line`, `Band`, `Drawing`, `draw`, `save_figures`, `COLOURS`.
"""

from tutelage.reports.charts.chart import COLOURS, Band, Chart, Line
from tutelage.reports.charts.drawing import Drawing, draw
from tutelage.reports.charts.figures import save_figures

__all__ = ["COLOURS", "Band", "Chart", "Drawing", "Line", "draw", "save_figures"]
