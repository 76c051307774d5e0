"""The rooms behind dataset.py: folders, lists and shards of images, one image, rows in a file."""
