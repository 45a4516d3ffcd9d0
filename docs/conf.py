"""Settings of Sphinx: `sphinx-build -W --keep-going docs site`."""

import vtokens

project = 'vtokens'
author = 'The vtokens authors'
copyright = 'The vtokens authors, Apache-2.0'
release = version = vtokens.__version__

extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon']
exclude_patterns = ['_build']
html_theme = 'furo'
html_title = f'vtokens {release}'
html_show_copyright = False
html_copy_source = False

# Pages are Markdown, with links as GitHub has them: [x](data.md#leaks).
myst_heading_anchors = 3
# Nothing is loaded from elsewhere.
myst_enable_extensions = ['attrs_inline']

# A reference that leads nowhere is a warning, which -W makes an error.
nitpicky = True
nitpick_ignore_regex = [('py:.*', '.*')]
suppress_warnings = ['myst.header']

# Docstrings are Google's; a name in single backticks is code.
default_role = 'code'
autodoc_member_order = 'bysource'
autodoc_typehints = 'signature'
autodoc_preserve_defaults = True
napoleon_use_ivar = True
napoleon_use_rtype = False
