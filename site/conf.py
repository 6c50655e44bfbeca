"""Sphinx's settings for the site; `make site` runs site/make.py, which calls Sphinx with them."""

project = "DINO, built piece by piece"
html_title = project
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx-mathjax-offline"]
html_theme = "furo"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_extra_path = ["extra"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False

# the outputs that are committed; nothing runs here
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "html_image"]
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type"]

# docstrings are plain text in which `this` is code
default_role = "code"
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True  # as they are written, such as the name of a function
python_maximum_signature_line_length = 70
