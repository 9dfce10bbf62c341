"""Repeated measurements as a median and their range."""

import statistics
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Median, minimum and maximum of several measurements, in seconds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> "Timing":
        return cls(statistics.median(values), min(values), max(values))
