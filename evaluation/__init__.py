"""The rooms behind evaluate.py; training validates with the same functions."""
