"""What a tokenizer.json says of a BPE vocabulary: tokens, merges, how text is cut. Knows no GGUF key.

There are two kinds: with byte fallback, as sentencepiece's models are written, and byte-level ones, as GPT-2's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edge_gemma.errors import CheckpointError

from .folder import CheckpointFolder

NAME = "tokenizer.json"
SPACE = "\u2581"  # how sentencepiece writes a space
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
SHOWN = 200  # characters of what is not known


@dataclass
class TokenizerJson:
    """The document and where it lies, `model` its model of the type BPE."""

    document: dict[str, Any]
    model: dict[str, Any]
    where: str

    @property
    def byte_fallback(self) -> bool:
        """Whether bytes that are part of no token have tokens <0x00> to <0xFF>."""
        return self.model.get("byte_fallback") is True

    def pieces(self) -> dict[int, str]:
        """Id -> text, of the model's own tokens."""
        vocab = self.model.get("vocab")
        if not isinstance(vocab, dict) or not vocab:
            raise CheckpointError(f"{self.where}: vocab must be an object of piece: id")
        pieces: dict[int, str] = {}
        for piece, number in vocab.items():
            if type(number) is not int or not 0 <= number < 2**31 or number in pieces:
                raise CheckpointError(f"{self.where}: vocab[{piece!r}] is {number!r}; ids are numbers, each once")
            pieces[number] = piece
        return pieces

    def merges(self) -> list[tuple[str, str]]:
        """The pairs in their order. They are written "a b" or ["a", "b"]."""
        merges = self.model.get("merges")
        if not isinstance(merges, list):
            raise CheckpointError(f"{self.where}: merges must be a list")
        return [self._pair(index, merge) for index, merge in enumerate(merges)]

    def _pair(self, index: int, merge: Any) -> tuple[str, str]:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) and part for part in pair):
            raise CheckpointError(f"{self.where}: merges[{index}] is {merge!r}, not a pair of pieces")
        return pair[0], pair[1]

    def pre_tokenizer(self) -> str:
        """GGUF's name of how a byte-level tokenizer cuts text into words. Raises CheckpointError for an unknown way."""
        found = self.document.get("pre_tokenizer")
        steps = found.get("pretokenizers") if isinstance(found, dict) and found.get("type") == "Sequence" else [found]
        name = _named(steps) if isinstance(steps, list) else None
        if name is None:
            known = "those of GPT-2, SmolLM and Llama 3"
            raise CheckpointError(f"{self._file}: pre_tokenizer {_shown(found)} is not known; known are {known}")
        if self.model.get("ignore_merges") is True and name != "llama-bpe":
            raise CheckpointError(f"{self.where}: ignore_merges with the pre_tokenizer of {name} is not known")
        return name

    def normalizer(self) -> Any:
        """What is done to a text before it is cut."""
        return self.document.get("normalizer")

    def puts_space_in_front(self) -> bool:
        """Whether a space is put in front of each text."""
        prepends = any(_type(step) == "Prepend" for step in _steps(self.normalizer(), "normalizers"))
        spaces = [s for s in _steps(self.document.get("pre_tokenizer"), "pretokenizers") if _type(s) == "Metaspace"]
        return prepends or any(step.get("prepend_scheme", "always") != "never" for step in spaces)

    def first_special(self) -> str | None:
        """The control token that is put in front of each text, if one is."""
        for step in _steps(self.document.get("post_processor"), "processors"):
            single = step.get("single") if _type(step) == "TemplateProcessing" else None
            first = single[0] if isinstance(single, list) and single else None
            special = first.get("SpecialToken") if isinstance(first, dict) else None
            if isinstance(special, dict) and isinstance(special.get("id"), str):
                return str(special["id"])
        return None

    @property
    def _file(self) -> str:
        return self.where.removesuffix(": model")


def read_tokenizer_json(folder: CheckpointFolder) -> TokenizerJson | None:
    """The folder's tokenizer.json, None without one. Raises CheckpointError if its model is no BPE."""
    document = folder.json(NAME)
    if document is None:
        return None
    where = f"{folder.path / NAME}: model"
    model = document.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        raise CheckpointError(f"{where}: only BPE is converted, this is {_shown(_type(model))}")
    return TokenizerJson(document, model, where)


def _named(steps: list[Any]) -> str | None:
    """GGUF's name for these steps."""
    known = [_type(step) for step in steps]
    if not known or known[-1] != "ByteLevel" or steps[-1].get("add_prefix_space") is True:
        return None
    cuts = steps[-1].get("use_regex", True) is True
    if known == ["ByteLevel"] and cuts:
        return "gpt-2"
    if known == ["Digits", "ByteLevel"] and cuts and steps[0].get("individual_digits") is True:
        return "smollm"
    if known == ["Split", "ByteLevel"] and not cuts and _isolates(steps[0], LLAMA_3):
        return "llama-bpe"
    return None


def _isolates(split: dict[str, Any], regex: str) -> bool:
    """Whether the step makes a word of each match, and of what is between two."""
    behavior = (split.get("behavior"), split.get("invert", False))
    return split.get("pattern") == {"Regex": regex} and behavior in (("Isolated", False), ("Removed", True))


def _steps(found: Any, inner: str) -> list[dict[str, Any]]:
    listed = found.get(inner) if _type(found) == "Sequence" else [found]
    return [step for step in listed if isinstance(step, dict)] if isinstance(listed, list) else []


def _type(step: Any) -> Any:
    return step.get("type") if isinstance(step, dict) else None


def _shown(value: Any) -> str:
    return repr(value)[:SHOWN]
