"""Recipes: what can be set, and how a recipe is loaded from its layers."""
