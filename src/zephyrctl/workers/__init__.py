"""The worker processes: the only code that imports torch, transformers and TRL."""
