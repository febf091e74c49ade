"""Dialogues, prompts and preference pairs: reading what the field publishes, building our own."""
