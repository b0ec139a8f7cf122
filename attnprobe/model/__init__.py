"""Network that attnprobe trains: a small Transformer whose activations can all be read and edited with hooks."""
