"""Fine-tuning methods: what each adds to the one loop (adapters, sampler, views of a face, loss)."""

from teachers.methods.base import Method, create_method

__all__ = ["Method", "create_method"]
