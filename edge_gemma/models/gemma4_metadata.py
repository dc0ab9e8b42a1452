"""The keys of a GGUF file that say the hyper-parameters of Gemma 4, in the order of llama.cpp's converter.

They leave nothing to be guessed. The other way round: `gemma4_config.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge_gemma import __version__
from edge_gemma.gguf.values import Metadata, Value, bools, f32, string, u32
from edge_gemma.graph.states import Rope
from edge_gemma.models.architecture import Config


def gemma4_metadata(config: Config) -> Metadata:
    """What llama.cpp reads, and which version wrote it."""
    at_global, at_local = _rope(config, local=False), _rope(config, local=True)
    keys: Metadata = {
        "block_count": u32(len(config.layers)),
        "context_length": u32(config.context_length),
        "embedding_length": u32(config.d_model),
        "feed_forward_length": _per_layer([layer.d_ff for layer in config.layers]),
        "attention.head_count": u32(config.n_heads),
        "attention.head_count_kv": _per_layer([layer.n_kv_heads for layer in config.layers]),
    }
    if at_global.scale != 1.0:
        keys |= {"rope.scaling.type": string("linear"), "rope.scaling.factor": f32(at_global.scale)}
    keys |= {"rope.freq_base": f32(at_global.base), "rope.freq_base_swa": f32(at_local.base)}
    keys["attention.layer_norm_rms_epsilon"] = f32(config.rms_eps)
    if config.experts is not None:
        keys |= {"expert_count": u32(config.experts.count), "expert_used_count": u32(config.experts.used)}
    keys |= {"attention.key_length": u32(at_global.dims), "attention.value_length": u32(at_global.dims)}
    keys["final_logit_softcapping"] = f32(config.final_softcap or 0.0)  # llama.cpp takes a missing one for 30
    if (local_layer := config.of_kind(local=True)) is not None and local_layer.window is not None:
        keys["attention.sliding_window"] = u32(local_layer.window)
    keys |= {
        "attention.shared_kv_layers": u32(sum(layer.shared_with is not None for layer in config.layers)),
        "embedding_length_per_layer_input": u32(config.per_layer_input),
        "attention.sliding_window_pattern": bools(config.local_layers),
        "attention.key_length_swa": u32(at_local.dims),
        "attention.value_length_swa": u32(at_local.dims),
    }
    if config.experts is not None:
        keys["expert_feed_forward_length"] = u32(config.experts.d_ff)
    keys |= {"rope.dimension_count": u32(at_global.dims), "rope.dimension_count_swa": u32(at_local.dims)}
    named = {f"{config.architecture}.{name}": value for name, value in keys.items()}
    return named | {"edge_gemma.version": string(__version__)}


def _per_layer(values: Sequence[int]) -> Value:
    """One number where all layers have the same."""
    return u32(values[0]) if len(set(values)) == 1 else Value("ARRAY[INT32]", np.array(values, np.int32))


def _rope(config: Config, *, local: bool) -> Rope:
    """The rotation of local or of global layers, also where there are none."""
    layer = config.of_kind(local=local)
    return layer.rope if layer else config.unused_rope or config.layers[0].rope
