"""Architectures: hyper-parameters, tensors, and the forward pass recorded once. Know no threads and no sampling."""
