"""Talking to checkpoints: which models there are to talk to, what a line means, and the conversation itself."""
