"""Record llama.cpp's token ids of a varied corpus: `python tokenizer_corpus.py MODEL.gguf`, with llama-cpp-python.

Writes tests/goldens/data/tokenizer.jsonl.gz. Each line has a text, the ids with special tokens in it left as text
("plain"), and the ids with them parsed ("special") where these are others. No BOS is added. The corpus is made by a
seeded generator from sentences and fragments below and from the vocabulary of the model itself.
"""

from __future__ import annotations

import gzip
import importlib
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TARGET = Path(__file__).resolve().parents[2] / "tests/goldens/data/tokenizer.jsonl.gz"

SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "It's 7:45 a.m.; she'd paid $1,234.56 (or 1.234,56 €) - didn't she?",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "Voilà: l'été dernier, nous avons mangé des crêpes à Orléans…",
    "¿Qué pasó en el año 1898? ¡Nada, señor!",
    "Pijamalı hasta yağız şoföre çabucak güvendi.",
    "Příliš žluťoučký kůň úpěl ďábelské ódy.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر",
    "דג סקרן שט בים מאוכזב ולפתע מצא חברה",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश",
    "আমার সোনার বাংলা, আমি তোমায় ভালোবাসি।",
    "யாமறிந்த மொழிகளிலே தமிழ்மொழி போல் இனிதாவது எங்கும் காணோம்",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า กว่าบรรดาฝูงสัตว์เดรัจฉาน",
    "いろはにほへと ちりぬるを。カタカナと漢字、２０２６年！",
    "天地玄黃，宇宙洪荒。日月盈昃，辰宿列張。",
    "人工智能模型可以在普通笔记本电脑上运行吗？",
    "키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다.",
    "ჩვენ ვსწავლობთ ქართულ ენას.",
    "Բարեւ աշխարհ, ինչպե՞ս եք։",
    "ሰላም ልዑል፣ እንዴት ነህ?",
    "သီဟိုဠ်မှ ဉာဏ်ကြီးရှင်သည်",
    "ᚠᛇᚻ᛫ᛒᛦᚦ᛫ᚠᚱᚩᚠᚢᚱ ⠓⠑⠇⠇⠕ 𓀀𓁐 𐍈𐌰 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ﷺ ﬁ ½ ∑∫√ ⿕",
    "Tôi có thể ăn thủy tinh mà không hại gì.",
]
CODE = [
    "def f(x: int) -> int:\n    if x < 2:\n        return 1\n\n    return x * f(x - 1)\n",
    "for (int i = 0; i < n; ++i) {\n\tsum += a[i] * b[i];\n}\n",
    'SELECT name, COUNT(*) FROM t WHERE id >= 10 AND note LIKE "%a_%" GROUP BY 1;',
    '{"key": [1, 2.5e-3, null, true], "s": "a\\n\\u00e9"}',
    '<div class="x"><p>Hi &amp; bye</p><br/><table><tr><td>1</td></tr></table></div>',
    "const g = async (a, b) => { await h(`${a}-${b}`); };",
    "fn main() { let v: Vec<_> = (0..10).map(|x| x << 1).collect(); }",
    '$ git log --oneline | head -n 5 && echo "done" > /tmp/out.txt',
    "https://example.org/a/b.html?q=1&r=%20x#top user.name+tag@mail.example.com",
    "\\begin{align} E &= mc^2 \\\\ \\frac{a}{b} &\\neq \\sqrt{\\pi} \\end{align}",
    "# Title\n\n* one\n* two\n    * three\n\n```python\nprint('x')\n```\n\n| a | b |\n|---|---|\n",
    "\t\tmov eax, [ebx+4*ecx]\r\n\t\tjmp .L2\r\n",
]
EMOJI = ["😀", "👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇩🇪🇫🇷", "❤️", "1️⃣", "🧑🏿‍🚀", "🫠", "⌚", "🀄", "☺︎", "👨‍💻"]
SPACES = [
    " ",
    "  ",
    "   ",
    "\t",
    "\n",
    "\n\n",
    "\r\n",
    "\u00a0",
    "\u3000",
    "\u200b",
    "\u2009",
    "\ufeff",
    "\u0085",
    "\v\f",
    "\x1c",
]
TAGS = [
    "<table>",
    "</td>",
    "<h1>",
    "</code>",
    "<b>",
    "<i>",
    "</b>",
    "<bbox>",
    "<br>",
    "<TABLE>",
    "< b>",
    "<b",
    "<<b>>",
    "</ul>",
]
CONTROL = [
    "<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>", "<pad>", "<unk>", "<mask>", "<unused0>", "<unused99>",
    "<unused9", "<unused6241>", "<unused>", "<0x0A>", "<0x00>", "<start_of_turn", "start_of_turn>",
    "<Start_of_turn>", "<|im_end|>",
    "</s>", "<s>", "[INST]", "<start_of_<start_of_turn>turn>", "<bos><bos>", "<end_of_turn>\n<start_of_turn>model\n",
]  # fmt: skip
# Plain in our reading, tokens in llama.cpp's: the one intended difference, kept apart by the test.
IMAGES = ["<start_of_image>", "<end_of_image>", "[multimodal]"]
BLOCKS = [
    (0x20, 0x7F), (0xA0, 0x250), (0x300, 0x370), (0x370, 0x590), (0x590, 0x700), (0x900, 0xE00), (0xE00, 0x1100),
    (0x1E00, 0x2000), (0x2000, 0x2580), (0x2582, 0x2C00), (0x2E80, 0x3100), (0x3100, 0xA000), (0xA000, 0xD7A4),
    (0xE000, 0xE100), (0xF900, 0x10000), (0x10000, 0x11000), (0x1F300, 0x1FB00), (0x20000, 0x20200), (0xE0000, 0xE0080),
    (0x10FFF0, 0x110000), (0x00, 0x20),
]  # fmt: skip


def fixed(own: list[str]) -> Iterator[str]:
    """Every fragment alone, and every length of run that has a token of its own or just not."""
    yield ""
    for text in SENTENCES + CODE + EMOJI + SPACES + TAGS + CONTROL + IMAGES + own:
        yield text
        yield f" {text}"
        yield f"{text} "
    for char in (" ", "\n", "\t", "a", "=", "-", "0", "é", "あ", "\u00a0", "😀"):
        for n in (*range(2, 34), 40, 63, 64, 65, 100):
            if n in (2, 3, 4, 8, 15, 16, 17, 30, 31, 32, 33, 40, 63, 64, 65, 100) or char in " \n\t":
                yield char * n
    for low in range(0, 0x100, 8):
        yield "".join(map(chr, range(low, low + 8)))


def generated(pieces: list[str], own: list[str], rng: random.Random) -> Iterator[str]:
    """Endless texts, mixed in ways that real text is not."""
    words = [word for text in SENTENCES + CODE for word in text.split()]

    def of_block() -> str:
        low, high = rng.choice(BLOCKS)
        return "".join(chr(rng.randrange(low, high)) for _ in range(rng.randint(1, 12)))

    def cut() -> str:
        text = rng.choice(SENTENCES + CODE)
        start = rng.randrange(len(text))
        return text[start : start + rng.randint(1, 40)]

    def run() -> str:
        return rng.choice(SPACES) * rng.randint(1, 9)

    parts: list[Callable[[], str]] = [
        of_block, cut, run,
        lambda: rng.choice(words), lambda: " " + rng.choice(words),
        lambda: rng.choice(pieces), lambda: "".join(rng.choices(pieces, k=3)),
        lambda: rng.choice(EMOJI), lambda: rng.choice(TAGS), lambda: rng.choice(CONTROL),
        lambda: str(rng.randrange(10 ** rng.randint(1, 12))),
        *([lambda: rng.choice(own)] if own else []),
    ]  # fmt: skip
    while True:
        yield "".join(rng.choice(parts)() for _ in range(rng.randint(1, 8)))


def corpus(pieces: list[str], size: int, own: list[str] | None = None) -> list[str]:
    """`size` different texts, without U+2581, which only we keep apart from a space.

    pieces: some of the vocabulary's. own: fragments that are of interest to it alone.
    """
    rng = random.Random(20240627)
    texts = dict.fromkeys(fixed(own or []))
    for text in generated(pieces, own or [], rng):
        if len(texts) >= size:
            return [text for text in texts if "\u2581" not in text]
        texts[text] = None
    raise AssertionError("the generator is endless")


def main(model_path: str) -> None:
    """Write the recording for the model's vocabulary."""
    llama_cpp = importlib.import_module("llama_cpp")  # only here: nothing else needs it

    model = llama_cpp.Llama(model_path, vocab_only=True, verbose=False)
    pieces = [model.detokenize([i]).decode("utf-8", "ignore") for i in range(0, model.n_vocab(), 7)]
    lines = []
    for text in corpus([piece for piece in pieces if piece], 3000):
        plain = model.tokenize(text.encode(), add_bos=False, special=False)
        special = model.tokenize(text.encode(), add_bos=False, special=True)
        record: dict[str, Any] = {"text": text, "plain": plain}
        record |= {} if special == plain else {"special": special}
        lines.append(json.dumps(record, separators=(",", ":"), ensure_ascii=False))
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))
    print(f"{TARGET}: {len(lines)} texts, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main(sys.argv[1])
