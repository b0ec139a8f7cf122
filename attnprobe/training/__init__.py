"""Training: objectives, batches, the loop, and what a run leaves behind."""
