"""A model that runs: program, cache, threads, sampling, answers."""
