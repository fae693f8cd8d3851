"""Preference learning on language models, on TRL's DPOTrainer."""
