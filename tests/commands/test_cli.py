"""`edge-gemma` as its user meets it: help, what each command prints, statuses, one line per error."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import edge_gemma
from edge_gemma import Gemma
from edge_gemma.commands.cli import COMMANDS
from edge_gemma.measure.info import describe
from tests.commands.process import GREEDY, PROMPT, assert_one_line_error, cli, environment, raw, shell
from tests.text.recorded_vocabulary import recording

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
