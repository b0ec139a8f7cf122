"""Measures: functions from a checkpoint (or a probe) to a labelled result. One file each, one line in a table."""

from attnprobe.tables import MEASURES

__all__ = ["MEASURES"]
