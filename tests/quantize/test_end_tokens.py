"""Where answers end: all that a checkpoint lists reaches the file, in keys of ours, Ollama's and llama.cpp's."""

import json
from pathlib import Path
from typing import Any

import pytest

from edge_gemma.gguf.file import GgufFile
from edge_gemma.quantize import quantize
from edge_gemma.text.tokenizer import Tokenizer
from tests.quantize import tiny_checkpoint as tiny
from tests.quantize.converting import metadata

EOS, UNUSED, TURN, NEWLINE, TEXT = 1, 5, 7, 8, 300
IM_START, IM_END, ANSWER = tiny.VOCAB, tiny.VOCAB + 1, tiny.VOCAB + 2
ADDED = {IM_START: ("<|im_start|>", True), IM_END: ("<|im_end|>", True), ANSWER: ("</answer>", False)}
PREFIX = "tokenizer.ggml"


def write(
    folder: Path, *, added: bool = True, generation: Any = None, eos: str | None = "<eos>", **config: Any
) -> None:
    """A checkpoint, with three tokens more if `added`."""
    tiny.write_checkpoint(folder, "gemma3", vocab_size=tiny.VOCAB + 3 * added, **config)
    document = tiny.tokenizer_config() | {"eos_token": eos}
    for number, (text, special) in ADDED.items() if added else ():
        document["added_tokens_decoder"][str(number)] = {"content": text, "special": special}
    (folder / "tokenizer_config.json").write_text(json.dumps(document))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))


def ends(path: Path) -> set[int]:
    with GgufFile.open(path) as file:
        return set(Tokenizer.from_gguf(file).eog_ids)


def converted(folder: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    report = quantize(folder, folder.with_name("out.gguf"), "F32")
    return metadata(folder.with_name("out.gguf")), report.notices


CASES: dict[str, tuple[dict[str, Any], list[int], dict[str, int]]] = {
    "nothing listed": ({"added": False}, [], {}),
    "eos alone": ({"added": False, "eos_token_id": 1, "generation": 1}, [], {}),
    "as tuned Gemma 3": ({"added": False, "eos_token_id": [1, TURN]}, [1, TURN], {"eot": TURN}),
    "generation config alone": ({"added": False, "generation": [1, TURN]}, [1, TURN], {"eot": TURN}),
    "an int there": ({"added": False, "generation": TURN}, [1, TURN], {"eot": TURN}),
    "text_config": ({"added": False, "text_config": {"eos_token_id": [TURN]}}, [1, TURN], {"eot": TURN}),
    "chatml": ({"eos_token_id": [1, IM_END], "generation": [1, IM_END]}, [1, IM_END], {"eot": IM_END}),
    "chatml, listed nowhere": ({}, [1, IM_END], {"eot": IM_END}),
    "chatml as eos": ({"eos": "<|im_end|>", "eos_token_id": 1}, [IM_END, 1], {"eot": 1}),
    "a text of its own": ({"eos_token_id": [1, TURN, ANSWER]}, [1, TURN, ANSWER, IM_END], {"eot": ANSWER}),
    "two of them": (
        {"eos_token_id": [1, TURN, ANSWER], "generation": [UNUSED]},
        [1, TURN, ANSWER, UNUSED, IM_END],
        {"eot": ANSWER, "eom": UNUSED},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_all_listed_ends_reach_the_file(tmp_path: Path, name: str) -> None:
    options, listed, roles = CASES[name]
    write(tmp_path / "hf", **options)
    keys, told = converted(tmp_path / "hf")
    assert not [text for text in told if "end" in text]
    assert keys.get(f"{PREFIX}.eos_token_ids", []) == listed
    assert {role: keys.get(f"{PREFIX}.{role}_token_id") for role in ("eot", "eom")} == {
        "eot": None,
        "eom": None,
    } | roles
    assert keys[f"{PREFIX}.eos_token_id"] == (IM_END if "as eos" in name else EOS)
    assert ends(tmp_path / "out.gguf") == {EOS, TURN, *listed}
    assert all(keys[f"{PREFIX}.token_type"][number] == 3 for number in listed)


@pytest.mark.parametrize("name", CASES)
def test_a_gguf_source_hands_them_on(tmp_path: Path, name: str) -> None:
    write(tmp_path / "hf", **CASES[name][0])
    keys, _ = converted(tmp_path / "hf")
    quantize(tmp_path / "out.gguf", tmp_path / "again.gguf", "Q8_0")
    again = metadata(tmp_path / "again.gguf")
    assert {k: v for k, v in keys.items() if k.startswith(PREFIX)} == {
        k: v for k, v in again.items() if k.startswith(PREFIX)
    }
    assert ends(tmp_path / "again.gguf") == ends(tmp_path / "out.gguf")


LEFT_OUT: list[tuple[Any, str]] = [
    (tiny.VOCAB, "answers will not end at token 384: it is not in the vocabulary"),
    (-1, "it is not in the vocabulary"),
    (True, "it is not in the vocabulary"),
    ("<eos>", "answers will not end at token <eos>: it is not in the vocabulary"),
    (NEWLINE, r"answers will not end at token 8: it is ordinary text, '\n'; give it as a stop string"),
    (TEXT, "it is ordinary text"),
    (100, "it is ordinary text, '<0x"),
]


@pytest.mark.parametrize(("number", "notice"), LEFT_OUT)
def test_what_cannot_end_an_answer_is_told(tmp_path: Path, number: Any, notice: str) -> None:
    write(tmp_path / "hf", added=False, eos_token_id=[1, number], generation=[1, TURN, number])
    keys, told = converted(tmp_path / "hf")
    assert keys[f"{PREFIX}.eos_token_ids"] == [1, TURN]
    assert ends(tmp_path / "out.gguf") == {1, TURN}
    (said,) = [text for text in told if "end" in text]
    assert notice in said


def test_more_than_llama_cpp_has_keys_for_is_told(tmp_path: Path) -> None:
    write(tmp_path / "hf", eos_token_id=[1, ANSWER, UNUSED, 6])
    keys, told = converted(tmp_path / "hf")
    assert keys[f"{PREFIX}.eos_token_ids"] == [1, ANSWER, UNUSED, 6, IM_END]
    assert "answers end at '<start_of_turn>', too: llama.cpp does not read that" in told


@pytest.mark.parametrize(("text", "number"), [("[PAD]", tiny.VOCAB), ("\n", NEWLINE), (None, 2**32), (None, TEXT)])
def test_a_padding_token_that_nobody_reads(tmp_path: Path, text: str | None, number: int) -> None:
    """[PAD] was added and the embedding not resized; or it is an ordinary token."""
    tiny.write_checkpoint(tmp_path / "hf", pad_token_id=number)
    document = tiny.tokenizer_config() | {"pad_token": text}
    document["added_tokens_decoder"][str(tiny.VOCAB)] = {"content": "[PAD]", "special": True}
    (tmp_path / "hf/tokenizer_config.json").write_text(json.dumps(document))
    keys, told = converted(tmp_path / "hf")
    assert f"{PREFIX}.padding_token_id" not in keys
    assert f"padding token {number} left out: it is ordinary text or beyond the vocabulary" in told
