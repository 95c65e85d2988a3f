"""Exact sampling by priority for any capacity; public name: `ops.PrioritySampler`."""
