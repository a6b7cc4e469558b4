"""What `benchmarks/attack.py` does to runs: kills, interrupts, damaged files, and places where nothing can be written."""
