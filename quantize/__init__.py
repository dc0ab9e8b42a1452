"""The offline quantizer: a Gemma checkpoint in, a GGUF out. Never imported by the runtime."""

if not __name__.startswith("edge_gemma."):
    raise ImportError("import this package as edge_gemma.quantize: the bare name belongs to other projects")
