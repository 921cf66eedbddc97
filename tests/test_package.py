"""What holds for the package as a whole: its public names, what importing it costs, its version and its papers."""

import importlib
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import opqn
import opqn._version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HEAVY = {"accelerate", "cv2", "faiss", "matplotlib", "numpy", "onnxruntime", "PIL", "pydantic", "safetensors", "torch"}


def modules_after(statement: str) -> set[str]:
    """Names of the top-level modules loaded in a fresh interpreter after ``statement``."""
    program = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing_heavy():
    loaded = modules_after("import opqn")
    assert "opqn" in loaded
    assert loaded & HEAVY == set()


@pytest.mark.parametrize("module", ["opqn.evaluation", "opqn.index"])
def test_search_and_evaluation_run_without_torch(module):
    loaded = modules_after(f"import {module}")
    assert "numpy" in loaded
    assert "torch" not in loaded


def test_public_names_are_sorted_and_unique():
    assert opqn.__all__ == sorted(set(opqn.__all__), key=str.casefold)


@pytest.mark.parametrize("name", opqn.__all__)
def test_public_name_resolves_to_the_object_of_that_name(name):
    value = getattr(opqn, name)
    home = importlib.import_module(f"opqn.{opqn._HOMES[name]}")
    assert getattr(home, name) is value
    assert name in dir(opqn)


def test_every_error_is_public():
    errors = importlib.import_module("opqn.errors")
    defined = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert defined <= set(opqn.__all__)


def test_unknown_name_is_an_attribute_error_that_names_it():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = opqn.no_such_name


def test_version_is_that_of_the_installed_package():
    try:
        expected = importlib.metadata.version("opqn")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("opqn is on the path but not installed, so there is no version to compare with")
    assert opqn.__version__ == expected == PROJECT["version"]


def test_version_of_a_checkout_that_was_never_installed(monkeypatch):
    def not_installed(name):
        raise importlib.metadata.PackageNotFoundError(name)

    with monkeypatch.context() as patch:
        patch.setattr(importlib.metadata, "version", not_installed)
        importlib.reload(opqn._version)
        assert opqn._version.__version__ == "0+unknown"
    importlib.reload(opqn._version)
    assert opqn._version.__version__ == opqn.__version__


def test_changelog_begins_with_the_version_of_the_project():
    versions = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert versions[0] == PROJECT["version"]


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_readme_shows_the_command(command):
    assert command in (ROOT / "README.md").read_text(encoding="utf-8")


def test_package_tells_type_checkers_that_it_is_typed():
    assert (Path(opqn.__file__).parent / "py.typed").is_file()
