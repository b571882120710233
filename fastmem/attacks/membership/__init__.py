"""Membership inference: pure functions from Signals to scores, higher = more likely a member."""
