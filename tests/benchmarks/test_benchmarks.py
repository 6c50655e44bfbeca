"""The quick versions of the benchmarks that a run cannot be lost, and that readers answer to
anything.
"""

import importlib.util
import logging
import sys
from pathlib import Path

import pytest


def benchmark(name):
    """The module of a script in benchmarks/."""
    path = Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def status(module, *arguments):
    """What the command exits with: 0, or what it fails with."""
    with pytest.raises(SystemExit) as error:
        module.main([str(word) for word in arguments])
    return error.value.code


@pytest.mark.skipif(sys.platform != "linux", reason="forks, so as not to import anew for each kill")
def test_kills_and_power_cuts_lose_nothing(capsys):
    assert status(benchmark("kill"), "--quick") == 0
    printed = capsys.readouterr().out
    assert "4 kills: " in printed and "bit for bit the uninterrupted run: True" in printed
    assert (
        "power cuts: undetected 0, not recovered from the checkpoint before 0, "
        "different in the end 0" in printed
    )


@pytest.fixture
def fuzz():
    yield benchmark("fuzz")
    logging.disable(logging.NOTSET)


def test_readers_answer_to_anything_with_the_errors_they_document(fuzz, capsys):
    assert status(fuzz, "--minutes", 0, "--examples", 40) == 0
    assert (
        "0 kinds of foreign errors, code executed: False (the trap works: True)"
        in capsys.readouterr().out
    )


def test_the_fuzzing_finds_a_reader_that_lets_an_error_through(fuzz, capsys, monkeypatch):
    monkeypatch.setattr(fuzz.Config, "from_json", lambda text: {}["no such key"])
    assert status(fuzz, "--minutes", 0, "--examples", 2) == 1
    assert "settings_json: KeyError" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("updates", "leak", "expected"), [(100, 0, 0), (100, 3_000_000, "grew by more than 8 MB")]
)
def test_memory_stays_flat_and_a_leak_is_found(updates, leak, expected):
    assert status(benchmark("memory"), "--updates", updates, "--leak", leak) == expected
