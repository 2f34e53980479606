"""Training: losses, GradNorm, training step, training loop, metrics log, checkpoints."""
