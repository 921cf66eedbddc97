"""Write the `--help` text of every verb into command-line.md, below its marker.

Run `python docs/make_command_line.py` after a change to the command line. With `--check` nothing is written: the
differences are printed, and the exit status is 1 where there are any (a test does that).
"""
# ruff: noqa: INP001 (a script, not part of a package)

from __future__ import annotations

import difflib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

# Typer reads these when it is imported; the text must not depend on the terminal or on the CI it is made in.
os.environ |= {"TERMINAL_WIDTH": "100", "COLUMNS": "100", "NO_COLOR": "1", "_TYPER_FORCE_DISABLE_TERMINAL": "1"}

from typer.main import get_command
from typer.testing import CliRunner

if TYPE_CHECKING:
    from collections.abc import Iterator

    import typer

PAGE = Path(__file__).with_name("command-line.md")
MARKER = "<!-- Everything below is written by make_command_line.py -->\n"


def paths(command: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the words that lead to each verb, a group before its verbs, in the order of the program's own list."""
    yield path
    for name, child in getattr(command, "commands", {}).items():
        if not child.hidden:
            yield from paths(child, (*path, name))


def help_text(app: typer.Typer, program: str, path: tuple[str, ...]) -> str:
    """Return what ``program path... --help`` prints at 100 columns, without colour."""
    result = CliRunner().invoke(app, [*path, "--help"], prog_name=program)
    if result.exit_code:
        raise RuntimeError(f"{program} {' '.join(path)} --help failed: {result.output}") from result.exception
    return "\n".join(line.rstrip() for line in result.output.strip().splitlines())


def sections(app: typer.Typer, program: str) -> str:
    """Return one Markdown section a verb: its name and its help text."""
    return "".join(
        f"\n## {' '.join((program, *path))}\n\n```text\n{help_text(app, program, path)}\n```\n"
        for path in paths(get_command(app))
    )


def main() -> int:
    """Write the page, or with ``--check`` compare it. Returns the exit status."""
    from opqn.cli import app  # noqa: PLC0415 (what the page is about; the functions above work for any program)

    old = PAGE.read_text(encoding="utf-8")
    new = old.partition(MARKER)[0] + MARKER + sections(app, "opqn")
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(new, encoding="utf-8")
        return 0
    sys.stdout.writelines(difflib.unified_diff(old.splitlines(True), new.splitlines(True), "the page", "the program"))
    return int(old != new)


if __name__ == "__main__":
    sys.exit(main())
