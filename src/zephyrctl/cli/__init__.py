"""The commands: each reads settings, calls a stage and shows its result."""
