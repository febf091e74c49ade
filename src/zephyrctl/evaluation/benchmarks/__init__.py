"""The published benchmarks, one module each."""
