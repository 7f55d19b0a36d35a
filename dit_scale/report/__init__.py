"""`dit-scale report`: a run's own page, one HTML file to look at or to send."""

from dit_scale.report.page import write_report

__all__ = ["write_report"]
