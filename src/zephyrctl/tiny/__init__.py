"""The closed world of the recipe `tiny`: its instructions, its rule-based teacher and judge, and its base model.

You need not read this package to understand the rest."""
