"""Record small tokenizers of the kinds that are converted, and ids by the `tokenizers` library; run where that is.

    python tools/goldens/record_hf_tokenizers.py    tests/goldens/data/hf_tokenizers.json.xz

Each is trained on the corpus' sentences: a tokenizer.json as published models have it, texts, and their ids without and
with control tokens parsed.
"""

from __future__ import annotations

import json
import lzma
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tools.goldens.tokenizer_corpus import CODE, EMOJI, SENTENCES, generated

TARGET = Path(__file__).resolve().parents[2] / "tests/goldens/data/hf_tokenizers.json.xz"
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level(pre: pre_tokenizers.PreTokenizer, special: list[str], **options: Any) -> Tokenizer:
    """As GPT-2, SmolLM2 and Llama 3."""
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.pre_tokenizer = pre
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES[:12] + CODE, trainer)
    return tokenizer


def byte_fallback(special: list[str], *, prefix: bool) -> Tokenizer:
    """As Gemma 4, and with a space in front as Llama 2: no words, and runs of newlines are merged."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    spaces = normalizers.Replace(" ", "\u2581")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), spaces]) if prefix else spaces
    trainer = trainers.BpeTrainer(
        vocab_size=800, special_tokens=[*special, *BYTES], show_progress=False, max_token_length=12
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("\n+"), "isolated")  # no merge mixes these with others
    tokenizer.train_from_iterator(SENTENCES[:12] + CODE + ["\n" * n for n in range(2, 9)] * 3, trainer)
    tokenizer.pre_tokenizer = None
    return without_added_bytes(tokenizer)


def without_added_bytes(tokenizer: Tokenizer) -> Tokenizer:
    """The byte tokens are pieces of the model only."""
    document = json.loads(tokenizer.to_str())
    document["added_tokens"] = [token for token in document["added_tokens"] if token["content"] not in BYTES]
    return Tokenizer.from_str(json.dumps(document))


def with_bos(tokenizer: Tokenizer, bos: str) -> Tokenizer:
    template = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return tokenizer


def tokenizers() -> Iterator[tuple[str, Tokenizer]]:
    """Name and tokenizer."""
    words, plain = pre_tokenizers.ByteLevel(add_prefix_space=False), pre_tokenizers.ByteLevel(False, use_regex=False)
    yield "gpt-2", byte_level(words, ["<|endoftext|>"])
    chat = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    yield "smollm", byte_level(pre_tokenizers.Sequence([pre_tokenizers.Digits(True), words]), chat)
    split = pre_tokenizers.Split(Regex(LLAMA_3), "isolated", invert=False)
    llama = byte_level(pre_tokenizers.Sequence([split, plain]), [], ignore_merges=True)
    llama.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"])
    llama.add_tokens([AddedToken("[x]", special=False, normalized=False)])
    yield "llama-bpe", with_bos(llama, "<|begin_of_text|>")
    yield "gemma4", byte_fallback(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<|turn>", "<turn|>"], prefix=False)
    yield "llama", byte_fallback(["<unk>", "<s>", "</s>"], prefix=True)


def main() -> None:
    """Write the recording."""
    fragments = generated(EMOJI, [], random.Random(5))
    texts = [text for text in (*SENTENCES, *CODE, *(next(fragments) for _ in range(120))) if "\u2581" not in text]
    record: dict[str, Any] = {"texts": texts}
    for name, tokenizer in tokenizers():
        ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        record[name] = {"tokenizer": json.loads(tokenizer.to_str()), "ids": ids}
    TARGET.write_bytes(lzma.compress(json.dumps(record, separators=(",", ":")).encode(), preset=9))
    print(f"{TARGET}: {len(texts)} texts, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
