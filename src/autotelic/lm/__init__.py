"""How a language model is loaded, sampled and passed."""
