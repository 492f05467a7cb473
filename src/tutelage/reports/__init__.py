"""What a run was like: one self-contained page for a run folder, and one for a comparison.

Public names: `Comparison`, `Variant`, `ComparedRun`.
"""

from tutelage.reports.compare import ComparedRun, Comparison, Variant

__all__ = ["ComparedRun", "Comparison", "Variant"]
