"""The documentation says what the program says."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from opqn._settings import Settings
from opqn.config import TrainingSettings, load_settings, preset_names

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture
def make_command_line(monkeypatch):
    for name in ("TERMINAL_WIDTH", "COLUMNS", "NO_COLOR", "_TYPER_FORCE_DISABLE_TERMINAL"):
        monkeypatch.setenv(name, "1")  # so that what the script sets is undone after the test
    spec = importlib.util.spec_from_file_location("make_command_line", DOCS / "make_command_line.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def fake_app():
    app = typer.Typer(help="A program with a verb, a group of verbs and a hidden verb.")
    data = typer.Typer(help="All about pictures.")
    app.add_typer(data, name="data")

    @app.command()
    def search(image: str, k: int = typer.Option(10, help="Hits to print.")):
        """Find the nearest faces."""

    @data.command()
    def prepare(folder: str):
        """Make a split file."""

    @app.command(hidden=True)
    def secret():
        """Not for people."""

    return app


def test_every_verb_gets_a_section_groups_before_their_verbs(make_command_line, fake_app):
    headings = [line for line in make_command_line.sections(fake_app, "fake").splitlines() if line.startswith("## ")]
    assert sorted(headings) == ["## fake", "## fake data", "## fake data prepare", "## fake search"]
    assert headings[0] == "## fake"
    assert headings.index("## fake data") + 1 == headings.index("## fake data prepare")


def test_a_section_holds_the_help_of_its_verb(make_command_line, fake_app):
    text = make_command_line.help_text(fake_app, "fake", ("data", "prepare"))
    assert "Usage: fake data prepare [OPTIONS]" in text
    assert "Make a split file." in text
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_verb_that_does_not_exist_is_an_error(make_command_line, fake_app):
    with pytest.raises(RuntimeError, match="fake nothing --help failed"):
        make_command_line.help_text(fake_app, "fake", ("nothing",))


def test_command_line_page_is_what_the_program_prints():
    # A process of its own: typer settles width and colour when it is imported, from the environment it finds then.
    done = subprocess.run(
        [sys.executable, DOCS / "make_command_line.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\nTo mend it: python docs/make_command_line.py"


def described() -> dict[str, str]:
    """What the program says of each setting."""
    return {
        f"{table}.{name}": field.description
        for table, settings in TrainingSettings()
        if isinstance(settings, Settings)
        for name, field in type(settings).model_fields.items()
    }


def first_cells(heading: str, count: int) -> list[tuple[str, ...]]:
    """The first cells of each row of the table under a heading of the training page."""
    section = (DOCS / "training.md").read_text(encoding="utf-8").partition(f"\n{heading}\n")[2].partition("\n#")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]
    return [tuple(cell.strip(" `") for cell in row[:count]) for row in rows]


def test_training_page_lists_the_settings_with_their_defaults():
    expected = [
        (f"{table}.{name}", json.dumps(default))
        for table, settings in TrainingSettings()
        if isinstance(settings, Settings)
        for name, default in settings
    ]
    assert first_cells("### All settings", 2) == expected
    assert {name: text for name, _, text in first_cells("### All settings", 3)} == described()


def test_training_page_lists_the_presets():
    rows = dict(first_cells("### Presets", 2))
    assert list(rows) == preset_names()
    for preset, lengths in rows.items():
        for length in lengths.split(", "):
            assert load_settings(preset, num_bits=int(length)).model.num_bits == int(length)
