"""The version of the installed package; pyproject.toml is the one place that states it."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("opqn")
except PackageNotFoundError:  # a checkout on the path that was never installed
    __version__ = "0+unknown"
