"""The rooms behind main.py: what comes before the first step, what a run says of itself, and several processes."""
