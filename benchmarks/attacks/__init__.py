"""What `benchmarks/attack.py` does to runs: kills, interrupts, damaged files, and bad places."""
