"""Training: the world to learn in, backbones, adapters."""
