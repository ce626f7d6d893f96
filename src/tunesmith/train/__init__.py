"""The training engine: batches, loss, loop, checkpoints. No word about recipes or artefacts (`stages/train`)."""
