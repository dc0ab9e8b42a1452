"""Record llama.cpp's token ids with vocabularies of today's models; needs llama-cpp-python.

    python tools/goldens/record_tokenizers.py NAME MODEL.gguf [TEXTS]    tests/goldens/data/tokenizer_NAME.json.xz

MODEL needs no weights: llama.cpp's own models/ggml-vocab-*.gguf serve. NAME is a key of OWN below.

A whole vocabulary of Gemma 4 has 15 MB. The recording has those of its tokens which are in some text of the corpus,
all tokens that are no ordinary text, and the merges among them. Other tokens and merges play no part in these texts, so
the ids are those of the whole vocabulary; a test makes a file of the part and holds it against them.
"""

from __future__ import annotations

import ctypes
import json
import lzma
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import llama_cpp

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tools.goldens.tokenizer_corpus import corpus

DATA = Path(__file__).resolve().parents[2] / "tests/goldens/data"
KEY = "tokenizer.ggml."
NORMAL, USER_DEFINED = 1, 4
LARGEST = 60  # bytes of a token looked for in a text

# fmt: off
CHAT = [
    "<|im_start|>", "<|im_end|>\n<|im_start|>assistant\n", "<|eot_id|>",
    "<|start_header_id|>user<|end_header_id|>\n\n",
]
RUNS = [char * n for char in ("\n", "\t", " ", "=", "ha", "\u3042") for n in (5, 31, 32, 33, 62, 63, 64, 97)]
WORDS = [
    "I'LL", "he'Ll", "we\u017f'\u017f", "o'clock's", " 're", "\u0661\u0662\u0663\u0664", "12345678", "\u00bd\u00b2",
    "a\u00a0b", "x\u0085y", "a\x1cb \x1d", "a\u3000\u3000b", "\u11f02\u1e4d0", "\U00011f02\U0001e4d0", "\U0002ebf0",
    "\r\n \r\n", " \n \n x",
]
OWN = {
    "gemma4": [
        "<|turn>", "<turn|>", "<|turn>user\n", "<turn|>\n<|turn>model\n", "<|think|>", "<|channel>thought\n<channel|>",
        "<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>',
        "<|image|>", "<|audio>", "<unused7>", "<table>x</table>", "\n\n\n \n\n", "\t\t \t", *RUNS,
    ],
    "smollm": [*CHAT, "<|endoftext|>", "<repo_name>", "<file_sep>", "<jupyter_code>", *RUNS, *WORDS],
    "llama-bpe": [*CHAT, "<|end_of_text|>", "<|begin_of_text|>", *RUNS, *WORDS],
    "gpt-2": ["<|endoftext|>", *RUNS, *WORDS],
    "mpt": ["<|endoftext|>", *CHAT, *RUNS, *WORDS],
    "default": [*RUNS, *WORDS, "$x^2+y<=z|~`", "1234567"],
    "llama-spm": ["</s>", "<s>[INST] ", " [/INST]", "<|prompt|>", "<|answer|>", "</s><s>", *RUNS],
}
# fmt: on


class Peer:
    """The vocabulary of a file, as llama.cpp has it."""

    def __init__(self, path: str) -> None:
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        model = llama_cpp.llama_model_load_from_file(path.encode(), params)
        self._vocabulary = llama_cpp.llama_model_get_vocab(model)
        self.size = llama_cpp.llama_vocab_n_tokens(self._vocabulary)

    def ids(self, text: str, parse_special: bool) -> list[int]:
        data = text.encode()
        out = (llama_cpp.llama_token * (2 * len(data) + 8))()
        count = llama_cpp.llama_tokenize(self._vocabulary, data, len(data), out, len(out), False, parse_special)
        assert count >= 0, text
        return list(out[:count])

    def piece(self, token: int) -> str:
        out = ctypes.create_string_buffer(4096)
        size = llama_cpp.llama_token_to_piece(self._vocabulary, token, out, len(out), 0, True)
        return out.raw[:size].decode("utf-8", "ignore")

    def facts(self) -> dict[str, Any]:
        ends = [i for i in range(self.size) if llama_cpp.llama_vocab_is_eog(self._vocabulary, i)]
        return {"ends": ends, "add_bos": bool(llama_cpp.llama_vocab_get_add_bos(self._vocabulary))}


def part(path: str, texts: list[str], used: set[int]) -> dict[str, Any]:
    """The keys of the vocabulary in `path`, and those of its tokens that `texts` ask for. `ids`: which they are."""
    fields = gguf.GGUFReader(path).fields
    keys = {name.removeprefix(KEY): field.contents() for name, field in fields.items() if name.startswith(KEY)}
    tokens, types = keys.pop("tokens"), keys.pop("token_type")
    inside = substrings(texts, _spelling(keys["model"]))
    ids = [i for i, token in enumerate(tokens) if types[i] != NORMAL or i in used or token in inside]
    chosen = {tokens[i] for i in ids}
    merges = [
        merge for merge in keys.pop("merges", []) if chosen.issuperset((*merge.split(" "), merge.replace(" ", "")))
    ]
    scores = keys.pop("scores", None)
    kept = {"ids": steps(ids), "tokens": [tokens[i] for i in ids], "types": [types[i] for i in ids]}
    if keys["model"] == "llama":
        kept["scores"] = [scores[i] for i in ids]
    rest = {name: value for name, value in keys.items() if isinstance(value, str | int | bool)}
    return kept | _made(merges, kept["tokens"]) | {"keys": rest, "architecture": _architecture(fields)}


def substrings(texts: list[str], spell: Callable[[str], str]) -> set[str]:
    """All stretches of the texts, as the vocabulary spells them."""
    found: set[str] = set()
    for text in map(spell, texts):
        for start in range(len(text)):
            found.update(text[start:end] for end in range(start + 1, min(start + LARGEST, len(text)) + 1))
    return found


def _spelling(model: str) -> Callable[[str], str]:
    if model != "gpt2":
        return lambda text: f" {text}".replace(" ", "\u2581")
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    table = {byte: chr(byte) for byte in visible} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}
    return lambda text: "".join(table[byte] for byte in text.encode())


def _made(merges: list[str], tokens: list[str]) -> dict[str, list[int]]:
    """Of each merge what it makes, as a place in `tokens`, and how many characters the left half has."""
    places = {token: i for i, token in reversed([*enumerate(tokens)])}
    return {
        "merged": steps([places[merge.replace(" ", "", 1)] for merge in merges]),
        "cuts": [merge.index(" ") for merge in merges],
    }


def steps(numbers: list[int]) -> list[int]:
    """Each number less the one before it: small ones, which take little room."""
    return [number - before for before, number in zip([0, *numbers], numbers, strict=False)]


def _architecture(fields: Any) -> str:
    return str(fields["general.architecture"].contents())


@llama_cpp.llama_log_callback
def _silent(_level: int, _text: bytes, _data: object) -> None:
    """llama.cpp prints a line per key otherwise."""


def main(name: str, path: str, size: int = 3000) -> None:
    """Write the recording."""
    llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))
    peer = Peer(path)
    texts = corpus([*filter(None, map(peer.piece, range(0, peer.size, 37)))], size, OWN[name])
    plain = [peer.ids(text, False) for text in texts]
    special = [peer.ids(text, True) for text in texts]
    used = {i for ids in (*plain, *special) for i in ids}
    others = {i: ids for i, ids in enumerate(special) if ids != plain[i]}
    record = {"texts": texts, "plain": plain, "special": others, **peer.facts(), "vocabulary": part(path, texts, used)}
    target = DATA / f"tokenizer_{name}.json.xz"
    raw = json.dumps(record, separators=(",", ":"), ensure_ascii=False).encode()
    target.write_bytes(lzma.compress(raw, preset=9))
    print(f"{target}: {len(texts)} texts, {len(record['vocabulary']['ids'])} tokens, {target.stat().st_size} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:4]))
