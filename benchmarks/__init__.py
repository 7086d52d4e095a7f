"""Timings of layers and networks; see README.md here. Run with ``pytest benchmarks``."""
