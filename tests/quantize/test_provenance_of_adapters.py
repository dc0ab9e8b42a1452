"""Files of a checkpoint with an adapter merged into it: compared with that sum, and verified against it."""

from pathlib import Path

import pytest

from edge_gemma.commands import cli
from edge_gemma.quantize import quantize
from edge_gemma.quantize.convert import open_source
from edge_gemma.quantize.output import provenance
from edge_gemma.quantize.verification import verify
from tests.quantize import tiny_checkpoint as tiny
from tests.quantize.test_lora import adapter_tensors, write_adapter
from tests.quantize.test_provenance import compared, quality_in


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter for the checkpoint `hf` beside it."""
    write_adapter(tmp_path / "lora", adapter_tensors(tiny.write_checkpoint(tmp_path / "hf", "gemma2", dtype="BF16")))
    return tmp_path / "lora"


def test_the_file_is_compared_with_the_merged_model(tmp_path: Path, adapter: Path) -> None:
    assert compared(tmp_path, "--type", "F32", "--lora", str(adapter)) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf", "lora", "out.gguf", "text.txt"]
    found = quality_in(tmp_path / "out.gguf")
    assert (found["kl_mean"], found["top_1"], found["perplexity_ratio"]) == (0.0, 1.0, 1.0)
    assert compared(tmp_path, "--type", "Q8_0", "--lora", str(adapter)) == 0
    assert 0 < quality_in(tmp_path / "out.gguf")["kl_mean"] < 1
    assert quality_in(tmp_path / "out.gguf").keys() == provenance.UNKNOWN.__dict__.keys()


def test_verify_against_a_source_and_its_adapter(
    tmp_path: Path, adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quantize(tmp_path / "hf", tmp_path / "out.gguf", "Q8_0", lora=[(adapter, 0.5)], threads=2)
    assert verify(tmp_path / "out.gguf", open_source(tmp_path / "hf", [(adapter, 0.5)])).problems == []
    arguments = ["verify", str(tmp_path / "out.gguf"), "--against", str(tmp_path / "hf")]
    assert cli.main([*arguments, "--lora", f"{adapter}:0.5"]) == 0
    capsys.readouterr()
    for other in ([], ["--lora", str(adapter)]):
        assert cli.main([*arguments, *other]) == 1
        assert "the source is not the one" in capsys.readouterr().out


def test_an_adapter_alone_is_nothing_to_verify_against(
    tmp_path: Path, adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quantize(tmp_path / "hf", tmp_path / "out.gguf", "Q8_0")
    assert cli.main(["verify", str(tmp_path / "out.gguf"), "--lora", str(adapter)]) == 2
    assert "--lora is for --against" in capsys.readouterr().err
