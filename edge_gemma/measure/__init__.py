"""Speed, time of operations, quality and statistics of a model, and what a file is. Print nothing."""
