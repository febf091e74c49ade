"""zephyrctl takes a base language model to an aligned chat model by the Zephyr recipe (arXiv 2310.16944)."""

__version__ = "0.1.0"
