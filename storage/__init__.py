"""The rooms behind dataset.py: where images lie, how one is opened, decoded pixels in one file."""
