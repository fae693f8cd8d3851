"""Entropy controls, whatever engine trains."""
