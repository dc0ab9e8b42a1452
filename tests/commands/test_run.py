"""`edge-gemma run` as its user meets it: text, pipes, signals, terminals, and ends before the end."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_gemma import Gemma
from tests.commands.process import COMMAND, GREEDY, PROMPT, cli, environment, shell, start


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
