"""Chat with checkpoints: the available models, the slash commands, and the conversation."""
