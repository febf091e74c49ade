"""What fits on some hardware, how fast it trains, and why: solved before anything starts."""
