"""Statistics of scores and patterns by offset, and their intervals. Nothing here knows a model or a checkpoint."""
