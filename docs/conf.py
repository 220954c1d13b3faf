"""How Sphinx builds the site: `make docs`."""

project = "bezoar_ray"
author = "bezoar_ray contributors"
extensions = ["myst_parser"]
myst_enable_extensions = ["deflist"]
html_theme = "furo"
html_title = "bezoar_ray"
html_show_copyright = False
myst_heading_anchors = 3  # a link may name a heading: page.md#the-heading
