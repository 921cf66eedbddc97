"""Pictures and pages that show what a search or a training did: contact sheets, charts, one HTML file."""

from __future__ import annotations

from opqn.report.page import Page, percent
from opqn.report.plots import (
    codeword_use,
    detection_error_svg,
    map_over_bits_svg,
    precision_recall_png,
    precision_recall_svg,
    training_curve,
    verification_svg,
)
from opqn.report.sheets import Hit, SheetRow, contact_sheet

__all__ = [
    "Hit",
    "Page",
    "SheetRow",
    "codeword_use",
    "contact_sheet",
    "detection_error_svg",
    "map_over_bits_svg",
    "percent",
    "precision_recall_png",
    "precision_recall_svg",
    "training_curve",
    "verification_svg",
]
