"""Decontamination: find and drop training rows that contain a benchmark's prompts."""
