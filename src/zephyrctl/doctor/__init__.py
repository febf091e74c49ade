"""What is here, what it lacks for training, and what to do about it; nothing is changed and no model is loaded."""
