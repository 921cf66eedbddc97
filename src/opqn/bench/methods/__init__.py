"""The comparison: every method, trained on the same data with the same network and effort, in tables and curves."""

from __future__ import annotations

from opqn.bench.methods.fetch import fetch, parse_source
from opqn.bench.methods.page import write_page
from opqn.bench.methods.runner import run_suite
from opqn.bench.methods.suites import SUITES, Suite, get_suite, narrowed
from opqn.bench.methods.tables import summary, tables

__all__ = [
    "SUITES",
    "Suite",
    "fetch",
    "get_suite",
    "narrowed",
    "parse_source",
    "run_suite",
    "summary",
    "tables",
    "write_page",
]
