"""Retraining: from a severe alarm to a judged challenger."""
