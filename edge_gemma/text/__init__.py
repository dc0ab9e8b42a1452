"""Text and token ids: vocabularies, tokenizing, detokenizing, stop strings. Know no model."""
