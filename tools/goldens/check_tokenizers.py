"""Hold whole vocabularies against llama.cpp's ids: `python tools/goldens/check_tokenizers.py NAME VOCABULARY.gguf`.

The suite has parts of them only. Compared are the recording of record_tokenizers.py under NAME, and llama.cpp's own
vectors where VOCABULARY.gguf.inp and .out lie beside the file, as in its models/. Then a long text without a line break
is encoded, and every id decoded.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from edge_gemma.gguf.file import GgufFile
from edge_gemma.text.tokenizer import Tokenizer
from tests.text.recorded_vocabulary import recording
from tests.text.test_recorded_ids import DIFFERENT

Vector = tuple[str, list[int], bool]
LONG = "The quick brown fox jumps over the lazy dog and "
SHOWN = 5


def vectors(name: str, path: Path) -> Iterator[Vector]:
    """Text, llama.cpp's ids, and whether control tokens are parsed."""
    found, ids = recording(name), [*recording(name).places]
    for text, plain, special in zip(found.texts, found.plain, found.special, strict=True):
        if not any(part in text for part in DIFFERENT.get(name, ())):
            yield text, [ids[i] for i in plain], False
            yield text, [ids[i] for i in special], True
    given, expected = (path.with_name(path.name + suffix) for suffix in (".inp", ".out"))
    if given.exists():
        texts = given.read_bytes().decode().split("\n__ggml_vocab_test__\n")
        for text, line in zip(texts, expected.read_text("utf-8").splitlines(), strict=False):
            yield text, [*map(int, line.split())], False


def main(name: str, path: Path) -> int:
    """Tell what differs; 1 if something does."""
    with GgufFile.open(path) as file:
        tokenizer = Tokenizer.from_gguf(file)
        count, wrong = 0, []
        for text, ids, parsed in vectors(name, path):
            count += 1
            if tokenizer.encode(text, add_bos=False, parse_special=parsed) != ids:
                wrong.append(text)
        for text in (LONG * 20_000, "\n" * 100_000, "=" * 100_000):
            count += 1
            if tokenizer.decode(tokenizer.encode(text)) != text:
                wrong.append(text[:40])
        empty = [i for i in range(tokenizer.vocab_size) if not tokenizer.token_bytes(i)]
    print(f"{path.name}: {count} texts, {len(wrong)} differ {wrong[:SHOWN]}; {len(empty)} tokens without bytes")
    return bool(wrong or empty)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
