"""The threads of a model: what they do in compiled code, how they sleep, and how many take part."""
