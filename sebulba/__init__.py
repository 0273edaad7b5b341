"""Sebulba: host environments and actor cores that feed learner cores."""
