"""The figures of a benchmark, behind evaluate.py; training validates with the same functions."""
