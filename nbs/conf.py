"The reading site: built offline from the committed outputs by `make docs`."
project = 'papers_lib'
extensions = ['myst_nb']
html_theme = 'furo'
html_title = 'papers_lib'
nb_execution_mode = 'off'
exclude_patterns = ['**/wandb', '_*']
myst_enable_extensions = ['dollarmath', 'amsmath']
suppress_warnings = ['myst.header', 'mystnb.unknown_mime_type']
