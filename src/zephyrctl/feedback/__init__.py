"""AI feedback: several models answer each prompt, a teacher rates every answer on four aspects."""
