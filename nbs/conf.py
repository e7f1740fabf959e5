"The reading site: built offline from the committed outputs by `make docs`, and read offline."
import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = 'papers_lib'
extensions = ['myst_nb', '_reading']
html_theme = 'furo'
html_title = 'papers_lib'
html_show_copyright = False
html_copy_source = False
html_use_index = False
nb_execution_mode = 'off'
nb_custom_formats = {'.ipynb': ['_reading.read', {}, False]}
exclude_patterns = ['**/wandb', '_static']
myst_enable_extensions = ['dollarmath', 'amsmath']
myst_update_mathjax = False
suppress_warnings = ['myst.header', 'mystnb.unknown_mime_type']

# MathJax as a Python package ships it, copied into the site: the default is a CDN
html_static_path = [find_spec('jupyter_server_mathjax').submodule_search_locations[0] + '/static', '_static']
html_css_files = ['reading.css']
mathjax_path = 'MathJax.js'
mathjax2_config = {
    'config': ['TeX-AMS-MML_HTMLorMML-full.js'],
    # the package has the glyphs of one font family, and MathJax asks for another unless it is told
    'HTML-CSS': {'availableFonts': [], 'preferredFont': None, 'webFont': 'STIX-Web', 'imageFont': None},
    'messageStyle': 'none',
}
