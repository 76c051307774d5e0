"""What every tool uses: weights, faces to features, finding and aligning a face."""
