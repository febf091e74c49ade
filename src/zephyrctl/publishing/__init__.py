"""What leaves the house: the report, the model card and the Hub repo."""
