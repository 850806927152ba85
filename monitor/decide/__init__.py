"""Decide: windows to scores to alarms, and why."""
