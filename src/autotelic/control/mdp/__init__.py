"""Finite MDPs, where every quantity is exact."""
