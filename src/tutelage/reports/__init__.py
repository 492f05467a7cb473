"""What a run was like: one self-contained page for a run folder, and one for a comparison.

Public names: `write_report`, `write_comparison`, and what compare.json holds: `Comparison`,
`Variant`, `ComparedRun`.
"""

from tutelage.reports.compare import ComparedRun, Comparison, Variant
from tutelage.reports.comparison import write_comparison
from tutelage.reports.page import write_report

__all__ = ["ComparedRun", "Comparison", "Variant", "write_comparison", "write_report"]
