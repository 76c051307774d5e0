"""The modules behind main.py: from the command line to the files that a run leaves."""
