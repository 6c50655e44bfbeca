"""The command line: what its words mean, its help, and how its errors end."""

import dataclasses
import os
import subprocess
import sys

import pytest

from dino_lib import cli
from dino_lib.cli import main, read_settings
from dino_lib.data.images import InputError
from dino_lib.run.config import Config
from dino_lib.run.presets import PRESETS


def settings_of(*words):
    return read_settings(words)[0]


def refused(words, capsys):
    """The one line on stderr with which a command line ends, exit status 2."""
    with pytest.raises(SystemExit) as end:
        main(words)
    out, error = capsys.readouterr()
    [line] = error.splitlines()
    assert end.value.code == 2 and line.startswith("error: ") and not out
    return line


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_alone_and_all_its_settings_are_the_preset(name, as_arguments):
    assert settings_of("--preset", name) == PRESETS[name]
    assert settings_of(*as_arguments(PRESETS[name])[1:]) == PRESETS[name]


def test_words_set_what_they_name_and_leave_the_rest_to_the_preset():
    words = """--preset smoke --batch-size 32 --lr 1e-3 --download False --global-scale 0.3 0.9
        --limit None --store-size 64 --use-bn False --head original --mean 0.5 --std 0.25
        --resume auto --output-dir x --device=cuda:1 --dataset 2024 --weights 7.pth"""
    assert settings_of(*words.split()) == dataclasses.replace(
        PRESETS["smoke"],
        batch_size=32,
        lr=1e-3,
        download=False,
        global_scale=(0.3, 0.9),
        limit=None,
        store_size=64,
        head="original",
        use_bn=False,
        mean=(0.5,),
        std=(0.25,),
        resume="auto",
        output_dir="x",
        device="cuda:1",
        dataset="2024",
        weights="7.pth",
    )


def test_without_a_preset_it_is_the_demo():
    assert settings_of("--seed", "7") == dataclasses.replace(PRESETS["demo"], seed=7)


def test_a_path_of_digits_is_a_path():
    assert read_settings(["--weights", "2024"])[0].weights == "2024"
    assert read_settings(["--weights", "None"])[0].weights is None
    assert read_settings(["--dataset", "2024"])[0].dataset == "2024"


def test_backbone_options_are_pairs_that_replace_the_presets():
    pairs = ["img_size", "32", "mlp_ratio", "2.5", "class_token", "False", "global_pool", "avg"]
    assert settings_of("--backbone-options", *pairs).backbone_options == {
        "img_size": 32,
        "mlp_ratio": 2.5,
        "class_token": False,
        "global_pool": "avg",
    }
    assert settings_of("--backbone", "resnet18", "--backbone-options").backbone_options == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--preset smok", "'smok' (choose from"),
        ("--batch-sise 32", "unrecognized arguments: --batch-sise 32"),
        ("--batch 32", "unrecognized arguments: --batch 32"),  # no abbreviations
        ("7", "unrecognized arguments: 7"),
        ("--batch-size many", "batch_size='many': Input should be a valid integer"),
        ("--batch-size 1e3", "batch_size=1000.0: Input should be a valid integer"),
        ("--batch-size -3", "batch_size=-3: Input should be greater than 0"),
        (
            "--batch-size -3 --momentum 2",
            "greater than 0; momentum=2: Input should be less than or equal to 1",
        ),
        ("--download no", "download='no': Input should be a valid boolean"),
        ("--device tpu", "device='tpu': String should match pattern '^(auto|cpu|mps|cuda"),
        ("--seed", "--seed: expected one argument"),
        ("--preset", "--preset: expected one argument"),
        ("--global-scale 0.3", "--global-scale: expected 2 arguments"),
        ("--blur-p 0.1 2 0", "blur_p.1=2: Input should be less than or equal to 1"),
        ("--backbone-options depth", "'depth' has no value"),
        ("--backbone-options depth [1]", "backbone_options.depth.int=[1]: Input should be"),
        ("--local-rank=0 --preset smoke", "use torchrun"),
        ("--local_rank=1", "use torchrun"),
    ],
)
def test_wrong_words_say_what_is_right(words, message, capsys):
    assert message in refused(["train", *words.split()], capsys)


def test_help_describes_every_setting_with_its_default(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit) as end:
        main(["train", "--preset", "laptop", "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "{" + ",".join(PRESETS) + "}" in text
    entries = [" ".join(entry.split()) for entry in text.split("\n  --")[1:]]
    options = {entry.split()[0]: entry for entry in entries}
    for field in dataclasses.fields(Config):
        entry = options[field.name.replace("_", "-")]
        assert len(entry.partition(" (default: ")[0].split()) >= 5, entry
    assert options["epochs"].endswith(f"(default: {PRESETS['laptop'].epochs})")
    assert options["global-scale"].endswith("(default: 0.4 1.0)")


# --- the commands ---------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["trian"], ["report"], ["explore"], ["video"]])
def test_a_command_line_that_lacks_something_says_what(words, capsys):
    line = refused(words, capsys)
    assert any(name in line for name in ("COMMAND", "teacher", "images", "clip"))


@pytest.mark.parametrize("command", ["report", "explore", "video"])
def test_a_device_that_is_not_there_is_refused(command, tmp_path, capsys):
    words = [command, "demo", "--out", str(tmp_path / "out"), "--device", "cuda:99"]
    assert "device=cuda:99 is not available here" in refused(words, capsys)
    assert not (tmp_path / "out").exists()


def test_help_names_the_commands_and_loads_no_torch():
    code = (
        "import sys\nfrom dino_lib.cli import main\ntry: main(['--help'])\nexcept SystemExit: "
        "sys.exit('torch' in sys.modules or 'pydantic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(f"  {name} " in done.stdout for name in cli.COMMANDS)


def test_the_package_is_a_command(capsys):
    """A command that is none needs no torch, whose import takes seconds."""
    done = subprocess.run(
        [sys.executable, "-m", "dino_lib", "nothing"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: argument COMMAND: invalid choice: 'nothing'")
    assert done.stderr.count("\n") == 1
    said = refused(["train", "--lr", "0"], capsys)
    assert said == "error: lr=0: Input should be greater than 0"


# --- how errors end -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        ValueError("this\n  is wrong"),
        OSError("this is wrong"),
        MemoryError("this is wrong"),
        FloatingPointError("this is wrong"),
        InputError("this is wrong"),
    ],
)
def test_an_error_that_says_it_all_is_one_line(error, monkeypatch, capsys):
    monkeypatch.setitem(cli.COMMANDS, "doctor", raising(error))
    assert refused(["doctor"], capsys) == "error: this is wrong"


def test_a_mistake_in_the_code_shows_its_traceback(monkeypatch, capsys):
    monkeypatch.setitem(cli.COMMANDS, "doctor", raising(KeyError("a")))
    with pytest.raises(KeyError):
        main(["doctor"])
    assert capsys.readouterr().err == "error: 'a'\n"


def test_an_interrupt_ends_with_130(monkeypatch):
    monkeypatch.setitem(cli.COMMANDS, "doctor", raising(KeyboardInterrupt()))
    with pytest.raises(SystemExit) as end:
        main(["doctor"])
    assert end.value.code == 130


def test_of_several_processes_the_line_names_its_rank(monkeypatch, capsys):
    monkeypatch.setitem(os.environ, "RANK", "3")
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "4")
    monkeypatch.setitem(cli.COMMANDS, "doctor", raising(ValueError("this is wrong")))
    with pytest.raises(SystemExit) as end:
        main(["doctor"])
    assert (end.value.code, capsys.readouterr().err) == (2, "rank 3: error: this is wrong\n")
    monkeypatch.setitem(cli.COMMANDS, "doctor", raising(RuntimeError("Connection reset by peer")))
    with pytest.raises(SystemExit) as end:
        main(["doctor"])
    assert end.value.code == 1
    assert capsys.readouterr().err == "rank 3: stopped, since another process has ended\n"


def raising(error):
    def command(words):
        raise error

    return command
