"""Folder -> GGUF: names, values, metadata, tokens; both dialects of config.json; GGUF -> GGUF."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from edge_gemma.errors import CheckpointError, ModelFormatError
from edge_gemma.gguf import GgufFile
from edge_gemma.quantize import quantize
from edge_gemma.quantize.hf_config import read_hyperparameters
from tests.quantize import tiny_checkpoint as tiny

TYPES = ["F32", "F16", "BF16", "Q8_0", "Q4_0"]
FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q4_0": 2}
NAMES = {
    "gemma": {"post_attention_layernorm": "ffn_norm"},
    "gemma2": {
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    },
}
NAMES["gemma3"] = NAMES["gemma2"]


def values(file: GgufFile, name: str) -> NDArray[np.float32]:
    tensor = file.tensors[name]
    kind = gguf.GGMLQuantizationType[tensor.format.name]
    raw = file.data(tensor)
    return gguf.quants.dequantize(raw, kind).reshape(tensor.shape)


def metadata(path: Path) -> dict[str, Any]:
    """Plain values; arrays as lists."""
    with GgufFile.open(path) as file:
        keys = file.metadata
        return {key: list(value) if keys.kind(key).startswith("ARRAY") else value for key, value in keys.items()}


def convert(tmp_path: Path, architecture: str = "gemma2", type: str = "F32", **kwargs: Any) -> Path:
    tiny.write_checkpoint(tmp_path / "hf", architecture, **kwargs)
    quantize(tmp_path / "hf", tmp_path / "out.gguf", type)
    return tmp_path / "out.gguf"


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("architecture", ["gemma", "gemma2", "gemma3"])
def test_every_tensor_has_its_name_and_values(tmp_path: Path, architecture: str, shards: int) -> None:
    tensors = tiny.write_checkpoint(tmp_path / "hf", architecture, shards=shards)
    quantize(tmp_path / "hf", tmp_path / "out.gguf", "F32")
    blocks = {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        **NAMES[architecture],
    }
    with GgufFile.open(tmp_path / "out.gguf", strict=True) as file:
        assert len(file.tensors) == len(tensors)
        assert np.array_equal(values(file, "token_embd.weight"), tensors["model.embed_tokens.weight"])
        assert np.array_equal(values(file, "output_norm.weight"), tensors["model.norm.weight"] + np.float32(1))
        for name, expected in tensors.items():
            if name.startswith("model.layers."):
                _, _, layer, block = name.removesuffix(".weight").split(".", 3)
                shift = np.float32(1 if expected.ndim == 1 else 0)
                assert np.array_equal(values(file, f"blk.{layer}.{blocks[block]}.weight"), expected + shift), name


@pytest.mark.parametrize("type", TYPES)
def test_types_of_a_file(tmp_path: Path, type: str) -> None:
    path = convert(tmp_path, type=type)
    embedding = "Q8_0" if type == "Q4_0" else type
    with GgufFile.open(path, strict=True) as file:
        assert file.metadata.u32("general.file_type") == FILE_TYPES[type]
        assert file.metadata.u32("general.quantization_version") == 2
        for tensor in file.tensors.values():
            wanted = "F32" if len(tensor.shape) == 1 else embedding if tensor.name.startswith("token_embd") else type
            assert tensor.format.name == wanted, tensor.name


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_blocks_are_the_reference_ones(tmp_path: Path, dtype: str) -> None:
    tensors = tiny.write_checkpoint(tmp_path / "hf", dtype=dtype)
    quantize(tmp_path / "hf", tmp_path / "out.gguf", "Q4_0")
    source = tensors["model.layers.1.mlp.down_proj.weight"]
    if dtype == "BF16":
        source = (source.view(np.uint32) & 0xFFFF0000).view(np.float32)
    source = source.astype(np.float16 if dtype == "F16" else np.float32).astype(np.float32)
    with GgufFile.open(tmp_path / "out.gguf") as file:
        written = file.data(file.tensors["blk.1.ffn_down.weight"])
        assert np.array_equal(written, gguf.quants.quantize(source, gguf.GGMLQuantizationType.Q4_0))


def test_norms_of_half_precision_are_widened_before_one_is_added(tmp_path: Path) -> None:
    tensors = tiny.write_checkpoint(tmp_path / "hf", dtype="F16")
    quantize(tmp_path / "hf", tmp_path / "out.gguf", "F16")
    expected = tensors["model.norm.weight"].astype(np.float16).astype(np.float32) + np.float32(1)
    with GgufFile.open(tmp_path / "out.gguf") as file:
        assert np.array_equal(values(file, "output_norm.weight"), expected)


def test_metadata_of_gemma2(tmp_path: Path) -> None:
    keys = metadata(convert(tmp_path, "gemma2"))
    expected = {
        "general.architecture": "gemma2",
        "general.type": "model",
        "gemma2.context_length": 512,
        "gemma2.embedding_length": 64,
        "gemma2.block_count": 3,
        "gemma2.feed_forward_length": 96,
        "gemma2.attention.head_count": 4,
        "gemma2.attention.head_count_kv": 2,
        "gemma2.attention.key_length": 32,
        "gemma2.attention.value_length": 32,
        "gemma2.attn_logit_softcapping": 50.0,
        "gemma2.final_logit_softcapping": 30.0,
        "gemma2.attention.sliding_window": 16,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
        "edge_gemma.attention.sliding_window_pattern": [True, False, True],
        "edge_gemma.rope.freq_base": 10000.0,
        "edge_gemma.rope.freq_base_local": 10000.0,
        "edge_gemma.rope.scale_linear": 1.0,
    }
    assert {key: keys.get(key) for key in expected} == expected
    assert keys["edge_gemma.attention.scale"] == np.float32(32**-0.5)
    assert keys["gemma2.attention.layer_norm_rms_epsilon"] == np.float32(1e-6)
    assert not [key for key in keys if key.startswith("gemma2.rope") or key.endswith("softcap")]


def test_metadata_of_gemma3_with_scaled_positions(tmp_path: Path) -> None:
    keys = metadata(convert(tmp_path, "gemma3", rope_scaling={"rope_type": "linear", "factor": 8.0}))
    assert keys["gemma3.rope.freq_base"] == keys["edge_gemma.rope.freq_base"] == 1e6
    assert keys["gemma3.rope.freq_base_swa"] == keys["edge_gemma.rope.freq_base_local"] == 1e4
    assert (keys["gemma3.rope.scaling.type"], keys["gemma3.rope.scaling.factor"]) == ("linear", 8.0)
    assert keys["edge_gemma.rope.scale_linear"] == 8.0
    assert keys["edge_gemma.attention.sliding_window_pattern"] == [True] * 5 + [False, True]
    assert "gemma3.attn_logit_softcapping" not in keys and "gemma3.final_logit_softcapping" not in keys


def test_unusual_layers_are_told_to_every_reader(tmp_path: Path) -> None:
    types = ["full_attention", "sliding_attention", "sliding_attention"]
    keys = metadata(convert(tmp_path, "gemma2", layer_types=types))
    assert keys["gemma2.attention.sliding_window_pattern"] == [False, True, True]
    assert keys["edge_gemma.attention.sliding_window_pattern"] == [False, True, True]


@pytest.mark.parametrize(
    ("architecture", "changes", "notice"),
    [
        ("gemma2", {"query_pre_attn_scalar": 24}, "attention scale 0.204124: llama.cpp will use 0.176777"),
        ("gemma2", {"tie_word_embeddings": False}, "output matrix of its own"),
        ("gemma3", {"layer_types": ["full_attention"] * 2 + ["sliding_attention"] * 5}, "unusual pattern"),
    ],
)
def test_what_llama_cpp_would_do_otherwise_is_told(
    tmp_path: Path, architecture: str, changes: dict[str, Any], notice: str
) -> None:
    tiny.write_checkpoint(tmp_path / "hf", architecture, **changes)
    report = quantize(tmp_path / "hf", tmp_path / "out.gguf", "F32")
    assert any(notice in text for text in report.notices)


def test_untied_output(tmp_path: Path) -> None:
    tensors = tiny.write_checkpoint(tmp_path / "hf", "gemma3", tie_word_embeddings=False)
    quantize(tmp_path / "hf", tmp_path / "out.gguf", "F32")
    with GgufFile.open(tmp_path / "out.gguf") as file:
        assert np.array_equal(values(file, "output.weight"), tensors["lm_head.weight"])


def test_tied_output_that_was_saved_is_left_out(tmp_path: Path) -> None:
    tensors = tiny.write_checkpoint(tmp_path / "hf")
    tiny.write_weights(tmp_path / "hf", {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]})
    quantize(tmp_path / "hf", tmp_path / "out.gguf")
    with GgufFile.open(tmp_path / "out.gguf") as file:
        assert "output.weight" not in file.tensors


V5_ROPE = {
    "gemma": {"rope_type": "default", "rope_theta": 10000.0},
    "gemma2": {"rope_type": "default", "rope_theta": 10000.0},
    "gemma3": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
}


@pytest.mark.parametrize("architecture", ["gemma", "gemma2", "gemma3"])
def test_both_dialects_of_config_say_the_same(architecture: str) -> None:
    scaling = {"rope_scaling": {"rope_type": "linear", "factor": 8.0}} if architecture == "gemma3" else {}
    old = tiny.make_config(architecture, **scaling)
    period = {"gemma": 1, "gemma2": 2, "gemma3": 6}[architecture]
    kinds = ["sliding_attention", "full_attention"]
    layer_types = [kinds[(i + 1) % period == 0] for i in range(old["num_hidden_layers"])]
    left_out = dict.fromkeys(("rope_theta", "rope_local_base_freq", "sliding_window_pattern"), ...)
    new = tiny.make_config(architecture, **left_out, layer_types=layer_types, rope_parameters=V5_ROPE[architecture])
    assert read_hyperparameters(old) == read_hyperparameters(new)


def test_old_spelling_of_scaled_positions() -> None:
    config = tiny.make_config("gemma3", rope_scaling={"type": "linear", "factor": 4.0})
    assert read_hyperparameters(config).rope_scale == 4.0


def test_defaults_left_out_of_text_config_are_filled_in() -> None:
    """The text_config of the published 4B model, as Hugging Face has it."""
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    model = read_hyperparameters({"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text})
    assert (model.heads, model.kv_heads, model.head_dim) == (8, 4, 256)
    assert (model.vocab_size, model.vocab_size_given, model.context_length) == (262208, False, 131072)
    assert (model.rope_base, model.rope_base_local, model.rope_scale) == (1e6, 1e4, 8.0)
    assert model.attention_scale == 256**-0.5 and model.sliding_window == 1024 and model.multimodal
    assert [layer for layer, local in enumerate(model.local_layers) if not local] == [5, 11, 17, 23, 29]


def write_multimodal(folder: Path, prefix: str, vision: str, rows: int) -> dict[str, NDArray[np.float32]]:
    tensors = tiny.write_checkpoint(folder, "gemma3", vocab_size=rows)
    config = tiny.make_config("gemma3", vocab_size=...)
    del config["architectures"]
    outer = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": config, "vision_config": {}}
    (folder / "config.json").write_text(json.dumps(outer))
    renamed = {name.replace("model.", prefix, 1): value for name, value in tensors.items()}
    extra = {f"{vision}vision_tower.a.weight": np.ones((2, 3, 4), np.float32)}
    extra[f"{vision}multi_modal_projector.mm_soft_emb_norm.weight"] = np.ones(4, np.float32)
    tiny.write_weights(folder, renamed | extra)
    return tensors


@pytest.mark.parametrize(
    ("prefix", "vision"), [("language_model.model.", ""), ("model.language_model.", "model."), ("language_model.", "")]
)
def test_text_model_of_a_multimodal_folder(
    tmp_path: Path, prefix: str, vision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edge_gemma.quantize import hf_config

    rows = tiny.VOCAB + 64
    monkeypatch.setitem(hf_config.DEFAULTS["gemma3"], "vocab_size", rows)
    tensors = write_multimodal(tmp_path / "hf", prefix, vision, rows)
    report = quantize(tmp_path / "hf", tmp_path / "out.gguf", "F32")
    assert "vision tower left out: 2 tensors" in report.notices
    assert "64 rows of the embedding without a token cut off (384 kept)" in report.notices
    with GgufFile.open(tmp_path / "out.gguf", strict=True) as file:
        assert len(file.tensors) == len(tensors)
        embedding = values(file, "token_embd.weight")
        assert np.array_equal(embedding, tensors["model.embed_tokens.weight"][: tiny.VOCAB])


def test_vocabulary_is_padded_to_the_embedding(tmp_path: Path) -> None:
    keys = metadata(convert(tmp_path, vocab_size=tiny.VOCAB + 16))
    assert keys["tokenizer.ggml.tokens"][-1] == b"[PAD399]"
    assert keys["tokenizer.ggml.scores"][-1] == -10000.0 and keys["tokenizer.ggml.token_type"][-1] == 5


def test_tokens(tmp_path: Path) -> None:
    keys = metadata(convert(tmp_path))
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    scores = keys["tokenizer.ggml.scores"]
    assert tokens[:11] == [
        *(b"<pad>", b"<eos>", b"<bos>", b"<unk>", b"<mask>", b"<unused0>"),
        *(b"<start_of_turn>", b"<end_of_turn>", b"\n", b"\n\n", b"  "),
    ]
    assert types[:11] == [3] * 8 + [4] * 3
    assert scores[:11] == [-1000.0] * 11
    assert types.count(6) == 256 and tokens[types.index(6)] == b"<0x00>"
    assert [s for s, t in zip(scores, types, strict=True) if t == 1] == [s for _, s in tiny.pieces()[267:]]


def test_tokenizer_json_alone_gives_the_same_vocabulary(tmp_path: Path) -> None:
    a = metadata(convert(tmp_path / "a"))
    b = metadata(convert(tmp_path / "b", tokenizer="json"))
    for key in ("tokens", "token_type"):
        assert a[f"tokenizer.ggml.{key}"] == b[f"tokenizer.ggml.{key}"]
    order_a, order_b = (np.array(keys["tokenizer.ggml.scores"]) for keys in (a, b))
    made = [i for i, token in enumerate(a["tokenizer.ggml.tokens"]) if i >= 267 and len(token.decode()) > 1]
    assert np.array_equal(np.argsort(-order_a[made]), np.argsort(-order_b[made]))


def test_added_tokens_of_tokenizer_json_serve_when_the_config_has_none(tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path / "hf", tokenizer="json")
    (tmp_path / "hf/tokenizer_config.json").write_text("{}")
    quantize(tmp_path / "hf", tmp_path / "out.gguf", "F32")
    assert metadata(tmp_path / "out.gguf")["tokenizer.ggml.token_type"][:11] == [3] * 8 + [4] * 3


TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize("place", ["tokenizer_config.json", "list", "chat_template.jinja", "chat_template.json"])
def test_chat_template(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "hf"
    tiny.write_checkpoint(folder)
    config = tiny.tokenizer_config()
    if place == "chat_template.jinja":
        (folder / place).write_text(TEMPLATE)
    elif place == "chat_template.json":
        (folder / place).write_text(json.dumps({"chat_template": TEMPLATE}))
    else:
        named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": TEMPLATE}]
        config["chat_template"] = named if place == "list" else TEMPLATE
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    quantize(folder, tmp_path / "out.gguf")
    assert metadata(tmp_path / "out.gguf")["tokenizer.chat_template"] == TEMPLATE


def _break(folder: Path, name: str, change: Any) -> None:
    document = json.loads((folder / name).read_text())
    change(document)
    (folder / name).write_text(json.dumps(document))


BROKEN_TOKENIZERS: dict[str, tuple[str, Any, str]] = {
    "no bytes": ("tokenizer.json", lambda d: d["model"].update(byte_fallback=False), "byte_fallback"),
    "not BPE": ("tokenizer.json", lambda d: d["model"].update(type="Unigram"), "only BPE"),
    "id twice": ("tokenizer.json", lambda d: d["model"]["vocab"].update({"the": 300}), "each once"),
    "id negative": ("tokenizer.json", lambda d: d["model"]["vocab"].update({"<pad>": -1}), "each once"),
    "merge of three": ("tokenizer.json", lambda d: d["model"]["merges"].append("a b c"), "not a pair"),
    "no merges": ("tokenizer.json", lambda d: d["model"].pop("merges"), "merges must be a list"),
    "empty token": ("tokenizer.json", lambda d: d["model"]["vocab"].update({"": 384}), "385 tokens|0 bytes"),
    "same text twice": (
        "tokenizer_config.json",
        lambda d: d["added_tokens_decoder"].update({"7": {"content": "<pad>"}}),
        "'<pad>' appears 2 times",
    ),
    "no UTF-8": (
        "tokenizer_config.json",
        lambda d: d["added_tokens_decoder"].update({"7": {"content": "\ud800"}}),
        "no UTF-8 form",
    ),
    "added without text": (
        "tokenizer_config.json",
        lambda d: d["added_tokens_decoder"].update({"7": {"special": True}}),
        "no content",
    ),
    "bos is text": ("tokenizer_config.json", lambda d: d.update(bos_token="\n"), "no control token"),
    "template is a number": ("tokenizer_config.json", lambda d: d.update(chat_template=7), "chat_template"),
    "bos outside": (
        "tokenizer_config.json",
        lambda d: d.update(bos_token=None),
        "bos token 9999 is outside 384 tokens",
    ),
}


@pytest.mark.parametrize("name", BROKEN_TOKENIZERS)
def test_broken_tokenizer(tmp_path: Path, name: str) -> None:
    file, change, message = BROKEN_TOKENIZERS[name]
    tiny.write_checkpoint(tmp_path / "hf", tokenizer="json", bos_token_id=9999)
    _break(tmp_path / "hf", file, change)
    with pytest.raises(CheckpointError, match=message):
        quantize(tmp_path / "hf", tmp_path / "out.gguf")


def test_broken_sentencepiece_model(tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path / "hf")
    (tmp_path / "hf/tokenizer.model").write_bytes(b"\x00\x01 not a protobuf")
    with pytest.raises(CheckpointError, match=r"tokenizer.model: not a sentencepiece model"):
        quantize(tmp_path / "hf", tmp_path / "out.gguf")


def test_no_tokenizer(tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path / "hf")
    (tmp_path / "hf/tokenizer.model").unlink()
    with pytest.raises(CheckpointError, match="neither tokenizer"):
        quantize(tmp_path / "hf", tmp_path / "out.gguf")


@pytest.mark.parametrize("type", TYPES)
def test_gguf_source_gives_the_same_file_as_the_folder(tmp_path: Path, type: str) -> None:
    tiny.write_checkpoint(tmp_path / "hf", "gemma3")
    quantize(tmp_path / "hf", tmp_path / "wide.gguf", "F32")
    quantize(tmp_path / "hf", tmp_path / "direct.gguf", type)
    report = quantize(tmp_path / "wide.gguf", tmp_path / "again.gguf", type)
    assert not report.notices
    a, b = metadata(tmp_path / "direct.gguf"), metadata(tmp_path / "again.gguf")
    for each in (a, b):  # the norms are stored in different ways
        del each["edge_gemma.source.sha256"]
    assert a == b
    with GgufFile.open(tmp_path / "direct.gguf") as x, GgufFile.open(tmp_path / "again.gguf") as y:
        assert all(np.array_equal(x.data(x.tensors[name]), y.data(y.tensors[name])) for name in x.tensors)


def test_kinds_of_values_survive_a_gguf_source(tmp_path: Path) -> None:
    wide = convert(tmp_path)
    quantize(wide, tmp_path / "again.gguf")
    with GgufFile.open(wide) as a, GgufFile.open(tmp_path / "again.gguf") as b:
        assert {k: a.metadata.kind(k) for k in a.metadata} == {k: b.metadata.kind(k) for k in b.metadata}


def test_quantized_source_is_told_and_its_blocks_of_the_same_type_are_copied(tmp_path: Path) -> None:
    small = convert(tmp_path, type="Q4_0")
    report = quantize(small, tmp_path / "again.gguf", "Q4_0")
    assert any("quantized already" in notice for notice in report.notices)
    with GgufFile.open(small) as a, GgufFile.open(tmp_path / "again.gguf") as b:
        assert all(np.array_equal(a.data(a.tensors[n]), b.data(b.tensors[n])) for n in a.tensors)


def test_damaged_gguf_source(tmp_path: Path) -> None:
    path = convert(tmp_path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ModelFormatError):
        quantize(path, tmp_path / "again.gguf")


def test_unknown_type_and_missing_source(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="'Q3_K' is not written; one of F32"):
        quantize(tmp_path, tmp_path / "out.gguf", "Q3_K")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        quantize(tmp_path / "nothing", tmp_path / "out.gguf")


def test_report(tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path / "hf")
    calls: list[tuple[int, int, str]] = []
    report = quantize(tmp_path / "hf", tmp_path / "out.gguf", progress=lambda *call: calls.append(call))
    assert report.bytes_out == (tmp_path / "out.gguf").stat().st_size
    assert report.tensors == 11 * 3 + 2
    assert 4.5 < report.bits_per_weight < 8.6
    assert calls[-1][:2] == (report.bytes_in, report.bytes_in)
    assert [call[0] for call in calls] == sorted(call[0] for call in calls)


def test_generation_config_and_size(tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path / "hf")
    settings = {"top_k": 64, "top_p": 0.95, "temperature": "hot", "min_p": None}
    (tmp_path / "hf/generation_config.json").write_text(json.dumps(settings))
    quantize(tmp_path / "hf", tmp_path / "out.gguf")
    keys = metadata(tmp_path / "out.gguf")
    assert keys["general.sampling.top_k"] == 64 and keys["general.sampling.top_p"] == np.float32(0.95)
    assert "general.sampling.temp" not in keys and "general.sampling.min_p" not in keys
    assert keys["general.size_label"] == "154K"


def test_the_real_model_becomes_q4_0(tmp_path: Path, real_model: Path) -> None:
    """As the demo does it: the norms, the tokenizer and the Q8_0 embedding are carried over bit by bit."""
    quantize(real_model, tmp_path / "out.gguf", "Q4_0", requantize=True)
    with GgufFile.open(real_model) as a, GgufFile.open(tmp_path / "out.gguf", strict=True) as b:
        assert set(a.tensors) == set(b.tensors)
        for name in ("token_embd.weight", "blk.3.attn_q_norm.weight", "output_norm.weight"):
            assert np.array_equal(a.data(a.tensors[name]), b.data(b.tensors[name]))
        wide = values(a, "blk.17.ffn_down.weight")
        written = b.data(b.tensors["blk.17.ffn_down.weight"])
        assert np.array_equal(written, gguf.quants.quantize(wide, gguf.GGMLQuantizationType.Q4_0))
        assert np.array_equal(*(list(f.metadata.strings("tokenizer.ggml.tokens")) for f in (a, b)))
        assert b.metadata.u32("general.file_type") == 2
