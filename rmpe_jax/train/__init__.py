"""Training: augmentation and losses, the pure step and its parallel map, checkpoints, and the loop."""
