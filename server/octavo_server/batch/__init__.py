"""Files and batches: what is stored, how a batch goes from one status to the next, and who runs its lines."""
