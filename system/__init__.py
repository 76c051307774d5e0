"""What knows no faces and needs no torch to import: locks and signals, progress, processes."""
