"""Sphinx: pages are MyST, code blocks run before they are read (`_ext/blocks.py`), the API comes from docstrings."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

import s2d  # noqa: E402

project = "s2d"
version = release = s2d.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
    "pages",
]
exclude_patterns = ["_ext"]

html_theme = "furo"
html_title = "s2d"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_show_copyright = html_show_sphinx = html_copy_source = False

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# A name between single backticks in a docstring is a link where it names something that has a page.
default_role = "named"
nitpicky = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_preserve_defaults = True
napoleon_use_ivar = True
napoleon_use_rtype = False
python_maximum_signature_line_length = 100
