"""Evaluations: what the memory recalls, beside the same model without it and with everything in its context."""
