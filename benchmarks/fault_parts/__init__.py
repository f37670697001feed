"""The parts of `benchmarks/faults.py`, a module each: `tasks(options)` gives what there is to try, by name."""
