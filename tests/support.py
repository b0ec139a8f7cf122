"""What several tests share that is no fixture."""

TINY = {
    "task_options": {"train_size": 64, "test_size": 40},
    "steps": 12,
    "evaluations": 2,
    "checkpoints": 2,
    "batch_size": 16,
}
"""Settings of a run that trains in a second."""
