"""The rooms behind dataset.py: where images lie (a folder, tar shards), one image and its age, decoded pixels in one file."""
