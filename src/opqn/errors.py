"""The errors opqn raises on purpose. Each message says what is wrong and what to do."""

from __future__ import annotations


class OpqnError(Exception):
    """Base of every error that opqn raises on purpose."""


class ConfigError(OpqnError, ValueError):
    """A setting or an argument is outside what the method or the program allows."""


class DataError(OpqnError):
    """The images, folders or split files given cannot be used."""


class ModelMismatchError(OpqnError):
    """Two things made by different models were brought together."""


class CorruptFileError(OpqnError):
    """A file is truncated, changed or not what its name says."""
