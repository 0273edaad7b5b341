"""Anakin: environment, agent and update in one XLA program on every device."""
