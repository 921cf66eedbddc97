"""Sphinx settings. `make docs` builds the pages; a warning, a broken reference included, fails the build."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import opqn

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

project = "opqn"
author = "The opqn authors"
copyright = author
release = opqn.__version__

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
nitpick_ignore_regex = [("py:.*", r"(?!opqn\.).*"), ("py:class", r"opqn\.faces\.pipeline\.Key")]


def find_under_public_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.TextElement
) -> nodes.reference | None:
    """Resolve a name said in full, as in `opqn.data.folders.scan_folder`, to the API page's `opqn.scan_folder`."""
    target = node.get("reftarget", "")
    name = target.rpartition(".")[2]
    if name not in opqn.__all__ or target == f"opqn.{name}":
        return None
    domain = env.domains.python_domain
    return domain.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], f"opqn.{name}", node, contnode)


def setup(app: Sphinx) -> dict[str, Any]:
    """Extend Sphinx."""
    app.connect("missing-reference", find_under_public_name)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
