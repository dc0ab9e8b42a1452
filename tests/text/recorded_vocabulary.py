"""The part of a real vocabulary that tools/goldens/record_tokenizers.py kept, as a GGUF file, with llama.cpp's ids."""

from __future__ import annotations

import functools
import json
import lzma
from itertools import accumulate
from pathlib import Path
from typing import Any

from tests.gguf_builder import BOOL, F32, I32, STRING, Builder, array, typed, u32

DATA = Path(__file__).parents[1] / "goldens" / "data"
KEY = "tokenizer.ggml."


class Recording:
    """llama.cpp's ids are those of the whole vocabulary; `places` says where these tokens are in the part."""

    def __init__(self, name: str) -> None:
        record = json.loads(lzma.decompress((DATA / f"tokenizer_{name}.json.xz").read_bytes()))
        self.texts: list[str] = record["texts"]
        self._vocabulary: dict[str, Any] = record["vocabulary"]
        self.places = {token: i for i, token in enumerate(accumulate(self._vocabulary["ids"]))}
        self.plain = [self._ids(ids) for ids in record["plain"]]
        self.special = [self._ids(record["special"].get(str(i), ids)) for i, ids in enumerate(record["plain"])]
        self.ends = frozenset(self._ids(record["ends"]))
        self.add_bos: bool = record["add_bos"]

    @property
    def tokens(self) -> list[str]:
        """Texts, as the vocabulary spells them."""
        return list(self._vocabulary["tokens"])

    def builder(self) -> Builder:
        """A file of this vocabulary, without weights."""
        found = self._vocabulary
        builder = Builder([("general.architecture", typed(STRING, found["architecture"]))])
        for name, value in found["keys"].items():
            builder.set(KEY + name, self._value(name, value))
        builder.set(f"{KEY}tokens", array(STRING, [token.encode() for token in self.tokens]))
        builder.set(f"{KEY}token_type", array(I32, found["types"]))
        if "scores" in found:
            builder.set(f"{KEY}scores", array(F32, found["scores"]))
        if found["cuts"]:
            builder.set(f"{KEY}merges", array(STRING, self._merges()))
        return builder

    def _merges(self) -> list[bytes]:
        tokens = self.tokens
        made = zip(accumulate(self._vocabulary["merged"]), self._vocabulary["cuts"], strict=True)
        return [f"{tokens[i][:cut]} {tokens[i][cut:]}".encode() for i, cut in made]

    def _value(self, name: str, value: Any) -> bytes:
        if isinstance(value, bool):
            return typed(BOOL, value)
        if isinstance(value, str):
            return typed(STRING, value)
        return u32(self.places[value] if name.endswith("_token_id") else value)

    def _ids(self, ids: list[int]) -> list[int]:
        return [self.places[i] for i in ids]


@functools.cache
def recording(name: str) -> Recording:
    """The recording NAME of record_tokenizers.py."""
    return Recording(name)
