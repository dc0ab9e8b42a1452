"""GGUF files: one mapping, checked metadata, the table of tensors. Know no model."""
