"The reading site: built offline from the committed outputs by `make docs`, and read offline."
from importlib.util import find_spec

project = 'papers_lib'
extensions = ['myst_nb']
html_theme = 'furo'
html_title = 'papers_lib'
nb_execution_mode = 'off'
exclude_patterns = ['**/wandb', '_*']
myst_enable_extensions = ['dollarmath', 'amsmath']
myst_update_mathjax = False
suppress_warnings = ['myst.header', 'mystnb.unknown_mime_type']

# MathJax as a Python package ships it, copied into the site: the default is a CDN
html_static_path = [find_spec('jupyter_server_mathjax').submodule_search_locations[0] + '/static']
mathjax_path = 'MathJax.js'
mathjax2_config = {'config': ['TeX-AMS-MML_HTMLorMML-full.js']}
