"""Sphinx settings. `make docs` builds the pages; a warning, a broken reference included, fails the build."""

from opqn import __version__

project = "opqn"
author = "The opqn authors"
copyright = author
release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"opqn {release}"

myst_enable_extensions = ["dollarmath", "amsmath", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False

nitpicky = True
# Names of other packages, whose documentation the build does not fetch, and type variables.
nitpick_ignore_regex = [("py:.*", r"(?!opqn\.).*")]
