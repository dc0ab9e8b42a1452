"""A forward pass as a table for the kernels: recording it, the cache it works on, and a step through it."""
