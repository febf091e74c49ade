"""The commands: doors that read settings, call a stage and show its result."""
