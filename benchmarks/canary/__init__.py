"""Measurements behind docs/canary.md: the null of the paired test, and the two-moons toy of the papers."""
