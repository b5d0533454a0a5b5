"""Checkpoints and the decoder: from files to hidden states and logits. Imports nothing of the engine."""
