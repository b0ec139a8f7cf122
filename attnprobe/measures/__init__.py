"""Measures: functions from a checkpoint or `Probe` to a labelled result, one file per measure."""

from attnprobe.tables import MEASURES

__all__ = ["MEASURES"]
