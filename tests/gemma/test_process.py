"""The file that a model lies in and the process that it runs in: changed, replaced, forked, imported."""

from __future__ import annotations

from pathlib import Path

import pytest

import edge_gemma
from edge_gemma import Gemma, ModelChangedError
from edge_gemma.gemma import Completion
from tests.gemma.helpers import PROMPT, answer, as_tuple, python


def test_a_file_changed_on_disk(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(path.read_bytes())
    with Gemma(copy) as model, Gemma(copy, load="copy") as loaded:
        before = answer(model)
        stream = model.stream(PROMPT)
        next(stream)
        with copy.open("ab") as file:
            file.write(b"x")
        with pytest.raises(ModelChangedError, match=r"copy\.gguf"):
            list(stream)
        with pytest.raises(ModelChangedError):
            model.generate(PROMPT)
        assert answer(loaded) == before


def test_a_file_replaced_by_another(path: Path, tmp_path: Path, expected: Completion) -> None:
    copy, other = tmp_path / "copy.gguf", tmp_path / "other.gguf"
    copy.write_bytes(path.read_bytes())
    other.write_bytes(b"something else")
    with Gemma(copy) as model:
        other.replace(copy)
        assert answer(model) == as_tuple(expected)


def test_a_fork_is_told_that_it_has_no_model(path: Path, expected: Completion) -> None:
    done = python(f"""
import os
from edge_gemma import ForkError, Gemma

model = Gemma({str(path)!r})
if not os.fork():
    try:
        model.generate("aa")
    except ForkError as error:
        print("child:", error, flush=True)
    model.close()
    with Gemma({str(path)!r}) as own:
        print(own.generate({PROMPT!r}, max_tokens=24, temperature=0.0).token_ids, flush=True)
    os._exit(0)
os.wait()
print(model.generate({PROMPT!r}, max_tokens=24, temperature=0.0).token_ids)
""")
    child, fresh, parent = done.stdout.splitlines()
    assert child.startswith("child: this process was forked")
    assert fresh == parent == str(expected.token_ids)
    assert done.stderr == ""


def test_a_fork_while_a_thread_generates(path: Path, expected: Completion) -> None:
    """The child has a lock that a thread holds which does not exist there."""
    done = python(f"""
import os, threading
from edge_gemma import ForkError, Gemma

model, reading, forked = Gemma({str(path)!r}, threads=2), threading.Event(), threading.Event()
stream, waiting = model.stream("aa"), model.stream("bb")
next(stream)

def hold(done, total):
    reading.set()
    forked.wait()

thread = threading.Thread(target=model.generate, args=([2] * 40,), kwargs=dict(max_tokens=3, on_progress=hold))
thread.start()
reading.wait()
if not os.fork():
    for call in (lambda: model.generate("aa"), lambda: model.stream("aa"), lambda: model.logits([2]),
                 lambda: model.logits_chunks([2], 1), lambda: next(stream), lambda: next(waiting)):
        try:
            call()
        except ForkError as error:
            print("child:", error, flush=True)
    model.cancel()
    stream.close()
    with model:
        print(model.detokenize(model.tokenize("aa")), flush=True)
    model.close()
    with Gemma({str(path)!r}, threads=2) as own:
        print(own.generate({PROMPT!r}, max_tokens=24, temperature=0.0).token_ids, flush=True)
    raise SystemExit
forked.set()
print(os.waitstatus_to_exitcode(os.wait()[1]))
thread.join()
print(model.generate({PROMPT!r}, max_tokens=24, temperature=0.0).token_ids)
""")
    refused, (text, own, status, answer) = done.stdout.splitlines()[:6], done.stdout.splitlines()[6:]
    assert all(line.startswith("child: this process was forked") for line in refused), refused
    assert (text, own, status, answer) == ("aa", str(expected.token_ids), "0", str(expected.token_ids))
    assert done.stderr == ""


def test_importing_the_package_loads_nothing_heavy() -> None:
    done = python("import sys, edge_gemma; print({'numba', 'llvmlite', 'numpy'} & {*sys.modules})")
    assert done.stdout == "set()\n"
    assert edge_gemma.Gemma is Gemma


def test_the_face_of_the_package() -> None:
    """All that is promised is there, is listed, and nothing else is made up."""
    assert all(getattr(edge_gemma, name) is not None for name in edge_gemma.__all__)
    assert {*edge_gemma.__all__} <= {*dir(edge_gemma)}
    with pytest.raises(AttributeError, match="Gemini"):
        edge_gemma.Gemini  # noqa: B018
