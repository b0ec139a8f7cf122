"""Training: objectives, batches, the training loop, checkpoints and run folders."""
