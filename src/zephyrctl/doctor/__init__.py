"""The checks of `zephyrctl doctor`: what this machine has, what is missing for training, and the remedy."""
