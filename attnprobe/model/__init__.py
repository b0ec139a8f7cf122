"""The network that attnprobe trains: a small Transformer in which everything can be seen and edited."""
