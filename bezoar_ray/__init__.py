"""bezoar_ray: the OpenBezoar recipe (arXiv 2404.12195) on Ray."""

__version__ = "0.1.0"
