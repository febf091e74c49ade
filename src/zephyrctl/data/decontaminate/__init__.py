"""Decontamination: which training rows contain what a benchmark asks, in one place."""
