"""Evaluation: checkpoints answer held-out prompts, a judge scores the answers, and every score has an interval."""
