"""Training: state, step, loop, checkpoints, run directories, writers."""
