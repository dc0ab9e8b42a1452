"""NumPy twins: the definition of every operation and format, plain and slow. Never run by the runtime."""
