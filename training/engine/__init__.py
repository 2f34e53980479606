"""Training: losses, GradNorm, the step, the loop, checkpoints."""
