"""Locks and signals, progress, processes, names: nothing here knows faces."""
