"What saves names, and what answers a user: wrapped and tied models, arguments, labels, folders, errors."

import copy, io, json, pickle, shutil, subprocess
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import ROOT
from torch import nn
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel

from saaae.runs import folder as runs_folder
from saaae.runs.checkpoint import learner_state, load_learner
from saaae.anchoring import anchor, anchored
from saaae.apps.conditional import codes, decode, known_classes
from saaae.data import DataError, Images
from saaae.evaluation import evaluate, plot_grid
from saaae.lab.conditioned import ClassConditional, conditioned_kind
from saaae.lab.controls import configure
from saaae.models import SAAAE, VAE
from saaae.training import unwrapped
from saaae.runs.pretrained import PRETRAINED
from saaae.runs.weights import load_weights, plain_state
from saaae.config import ConfigError
from saaae.training import Learner, TrainingError, build_model, build_models, train_epoch
from saaae.runs.folder import load_run, run_folder, save_weights, train, train_or_load
from saaae.tools.watching import find_runs, read_runs

TOY = dict(image_size=16, patches=2, patch_size=4, width=2, latent=4, attention="patch", epochs=2, batch_size=4)
CFG = configure("small", **TOY, grid_epochs=(1,), device="cpu")
CONDITIONED = replace(CFG, classes=2)


def some(*labels, n=8):
    labels = torch.tensor(labels or [0] * n)
    pixels = torch.randint(0, 256, (len(labels), 3, 16, 16), generator=torch.Generator().manual_seed(0))
    return Images(pixels.byte(), labels, torch.arange(len(labels)), ("cat", "dog"), "pets")


def own(kind=SAAAE, seed=0, **given):
    torch.manual_seed(seed)
    return kind(**dict(image_size=16, width=2, latent=4) | (dict(attention="patch") if kind is SAAAE else {}) | given)


def quietly(call, *args, **given):
    "What a call returns, and what it printed."
    with redirect_stdout(said := io.StringIO()):
        return call(*args, **given), said.getvalue()


def compiled(module):
    return torch.compile(module, backend="eager")


def compiled_parts(model):
    model = copy.deepcopy(model)
    model.encoder, model.to_mu = compiled(model.encoder), compiled(model.to_mu)
    return model


def compiled_in_place(model):
    (model := copy.deepcopy(model)).compile(backend="eager")
    return model


WRAPPED = dict(
    plain=lambda model: model,
    compiled=compiled,
    parts=compiled_parts,
    in_place=compiled_in_place,
    parallel=nn.DataParallel,
    parallel_compiled=lambda model: compiled(nn.DataParallel(model)),
    averaged=AveragedModel,
    copied=lambda model: copy.deepcopy(compiled(model)),
    pickled=lambda model: pickle.loads(pickle.dumps(compiled(model))),
)


# Wrapped, tied and parametrized models


@pytest.mark.parametrize("form", WRAPPED)
def test_weights_cross_between_wrapped_and_plain_models(tmp_path, form):
    plain = own()
    save_weights(WRAPPED[form](plain), path := tmp_path / "w.safetensors")
    written = safetensors.torch.load_file(path)
    assert written.keys() == plain.state_dict().keys()
    for name, weight in plain.state_dict().items():
        assert torch.equal(written[name], weight)
    other = own(seed=1)
    load_weights(wrapped := WRAPPED[form](other), path)
    for name, weight in plain_state(wrapped).items():
        assert torch.equal(weight, written[name])


@pytest.mark.parametrize("form", ["compiled", "parts", "parallel", "parallel_compiled"])
def test_files_with_the_names_of_wrappers_are_read(tmp_path, form):
    safetensors.torch.save_file(WRAPPED[form](own()).state_dict(), path := tmp_path / "torch's own.safetensors")
    load_weights(model := own(seed=1), path)
    for name, weight in own().state_dict().items():
        assert torch.equal(model.state_dict()[name], weight)


def test_a_models_own_part_named_module_keeps_its_name(tmp_path):
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(2, 3)

    save_weights(compiled(Holder()), path := tmp_path / "w.safetensors")
    assert set(safetensors.torch.load_file(path)) == {"module.weight", "module.bias"}
    load_weights(Holder(), path)
    assert unwrapped(holder := Holder()) is holder


def test_tied_weights_are_saved_under_both_names_and_stay_tied(tmp_path):
    def tied(seed):
        model = own(seed=seed)
        model.to_logvar.weight = model.to_mu.weight
        return model

    first, path = tied(0), tmp_path / "w.safetensors"
    save_weights(first, path)
    written = safetensors.torch.load_file(path)
    assert torch.equal(written["to_mu.weight"], written["to_logvar.weight"])
    written_once = lambda: safetensors.torch.save_model(compiled(first), str(path))
    for save in (lambda: None, written_once):
        save()
        load_weights(again := tied(1), path)
        assert again.to_logvar.weight is again.to_mu.weight and torch.equal(again.to_mu.weight, first.to_mu.weight)
    with pytest.raises(DataError, match="another model"):
        load_weights(own(), path)  # not tied: a weight is missing
    first.save_pretrained(tmp_path / "model")
    assert torch.equal(SAAAE.from_pretrained(tmp_path / "model").to_logvar.weight, first.to_mu.weight)


def test_views_of_one_storage_are_saved(tmp_path):
    model, both = own(), torch.randn(2, 4, 16)
    model.to_mu.weight, model.to_logvar.weight = nn.Parameter(both[0]), nn.Parameter(both[1])
    save_weights(model, path := tmp_path / "w.safetensors")
    assert torch.equal(safetensors.torch.load_file(path)["to_logvar.weight"], both[1])


@pytest.mark.parametrize("how", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrized_models_keep_their_names_and_are_not_saved_as_plain_ones(tmp_path, how):
    def changed(seed):
        how((model := own(seed=seed)).to_mu)
        return model

    save_weights(compiled(changed(0)), path := tmp_path / "w.safetensors")
    load_weights(again := changed(1), path)
    for name, weight in changed(0).state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)
    with pytest.raises(DataError, match="another model: to_mu.parametrizations"):
        load_weights(own(), path)
    with pytest.raises(ValueError, match="^to_mu is parametrized: remove_parametrizations first"):
        changed(0).save_pretrained(tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_batch_counters_of_normalised_models_are_kept(tmp_path):
    make = lambda: nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    model = make()
    model(torch.rand(2, 3, 4, 4))
    save_weights(compiled(model), path := tmp_path / "w.safetensors")
    load_weights(nn.DataParallel(again := make()), path)
    assert again[1].num_batches_tracked == 1 and torch.equal(again[1].running_mean, model[1].running_mean)


@pytest.mark.parametrize("form", ["compiled", "parts", "in_place", "parallel"])
def test_checkpoints_cross_between_wrapped_and_plain_models(form):
    images = some()
    first = Learner(build_model(CFG), CFG, steps=4)
    train_epoch(first, images, CFG, 1)
    expected, rest = learner_state(first)
    wrapped = Learner(WRAPPED[form](build_model(replace(CFG, seed=1))), CFG, steps=4)
    load_learner(wrapped, expected, rest)
    state, again = learner_state(wrapped)  # what a wrapped run writes
    plain = Learner(build_model(CFG), CFG, steps=4)
    load_learner(plain, state, again)
    for found in (state, learner_state(plain)[0]):
        assert found.keys() == expected.keys() and all(torch.equal(v, expected[k]) for k, v in found.items())
    assert train_epoch(plain, images, CFG, 2) == train_epoch(first, images, CFG, 2)


def test_checkpoints_with_the_names_of_wrappers_are_read():
    tensors, rest = learner_state(first := Learner(build_model(CFG), CFG, steps=4))
    older = {k.replace("model.", "model._orig_mod."): v for k, v in tensors.items()}
    load_learner(plain := Learner(build_model(replace(CFG, seed=1)), CFG, steps=4), older, rest)
    for name, weight in first.model.state_dict().items():
        assert torch.equal(plain.model.state_dict()[name], weight)


def test_a_compiled_run_is_resumed_opened_and_used_again(tmp_path):
    class Stop(Exception):
        pass

    def stop(model, epoch):
        if epoch == 2:
            raise Stop
        return {}

    wrap, cfg = lambda: {name: compiled(model) for name, model in build_models(CFG).items()}, replace(CFG, eval_every=1)
    with pytest.raises(Stop):
        quietly(train, wrap(), some(), cfg, tmp_path, stop, checkpoint_seconds=0)
    models = build_models(CFG)
    needed, said = quietly(train_or_load, models, some(), cfg, tmp_path)
    assert needed and "after epoch 1" in said
    assert not train_or_load(again := wrap(), some(), cfg, tmp_path)
    for found in (again, load_run(tmp_path, "cpu")[1]):
        for name, model in models.items():
            state = plain_state(found[name])
            assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_parallel_models_are_trained_evaluated_and_drawn(tmp_path):
    models, images = build_models(CFG), some()
    wrapped = {name: nn.DataParallel(model) for name, model in build_models(CFG).items()}
    for each, folder in ((models, "plain"), (wrapped, "parallel")):
        quietly(train, each, images, CFG, tmp_path / folder)
    assert (tmp_path / "plain" / "metrics.csv").read_bytes() == (tmp_path / "parallel" / "metrics.csv").read_bytes()
    mse = lambda model: evaluate(model, images, CFG, ssim=False)["mse"]
    assert mse(wrapped["saaae"]) == mse(models["saaae"])
    rows = lambda models: [ax.get_ylabel() for ax in plot_grid(models, images, CFG, 1).axes]
    assert rows(wrapped) == rows(models) and "attention" in rows(wrapped)


@pytest.mark.parametrize("form", ["compiled", "parts", "in_place", "copied"])
def test_save_pretrained_of_compiled_models(tmp_path, form):
    WRAPPED[form](own()).save_pretrained(tmp_path)
    again = SAAAE.from_pretrained(tmp_path)
    for name, weight in own().state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)


def test_anchors_of_wrapped_models_and_wrapped_anchors(tmp_path):
    x, noise = torch.rand(2, 3, 16, 16), lambda: torch.Generator().manual_seed(0)
    vae = own(VAE).eval()
    for form in ("compiled", "parts", "parallel", "averaged"):
        assert type(anchor(WRAPPED[form](vae), image_size=16)) is anchored(VAE)
    gated = anchor(vae)
    for form in ("compiled", "parts", "in_place"):
        WRAPPED[form](gated).save_pretrained(tmp_path / form)
        again = anchored(VAE).from_pretrained(tmp_path / form)
        assert torch.equal(again(x, noise())[0], gated(x, noise())[0])
    assert torch.equal(compiled_in_place(gated).plain()(x, noise())[0], vae(x, noise())[0])  # without the gate
    attention = nn.Sequential(nn.Flatten(), nn.Linear(768, 4))
    anchor(vae, compiled(attention)).save_pretrained(tmp_path / "own")
    again = anchored(VAE).from_pretrained(tmp_path / "own", attention=attention)
    assert torch.equal(again.anchor.attention[1].weight, attention[1].weight)


# Labels


@pytest.mark.parametrize(
    "labels, says",
    [
        ((-1, -1), "must be 0 for pets, not 2: 2 of its 2 images have no label"),
        ((0, -1), "must be 0 for pets, not 2: 1 of its 2 images have no label"),
        ((0, 2), "must be at least 3 for pets, not 2"),
    ],
)
def test_labels_that_a_model_cannot_be_told_are_refused(tmp_path, labels, says):
    images, model = some(*labels), build_model(CONDITIONED)
    trains = lambda: train(build_models(CONDITIONED), images, CONDITIONED, tmp_path / "run")
    for call in (trains, lambda: evaluate(model, images, CONDITIONED, ssim=False)):
        with pytest.raises(ConfigError, match=f"classes {says}"):
            call()
    assert not list(tmp_path.glob("run/*.*"))
    for call in (
        lambda: codes(compiled(model), images, CONDITIONED),
        lambda: decode(model, torch.zeros(2, 4), images.labels),
    ):
        with pytest.raises(DataError, match="Labels must be from 0 to 1"):
            call()
    CFG.check_labels(images)  # which tells no class


def test_labels_without_a_name_are_refused():
    with pytest.raises(DataError, match="pets has the label 5, where pets names 2"):
        known_classes(some(0, 5), some(0, 1))


# What from_pretrained is given


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    own(floor=0.1).save_pretrained(folder := tmp_path_factory.mktemp("saved") / "model")
    anchor(own(VAE)).save_pretrained(folder.parent / "gated")
    return folder


@pytest.mark.parametrize(
    "given, dtype",
    [
        (dict(torch_dtype=torch.float16), torch.float16),
        (dict(dtype="bfloat16"), torch.bfloat16),
        (dict(dtype="torch.float64"), torch.float64),
        (dict(device_map="cpu", torch_dtype=None), torch.float32),
        (dict(device_map="auto"), torch.float32),
        (dict(map_location="cpu"), torch.float32),
        (dict(strict=True, revision="main", token=None, local_files_only=True), torch.float32),
    ],
)
def test_arguments_of_other_libraries_are_taken(saved, given, dtype):
    for kind, folder in ((SAAAE, saved), (anchored(VAE), saved.parent / "gated")):
        model = kind.from_pretrained(folder, **given)
        assert {p.dtype for p in model.parameters()} == {dtype} and not model.training


@pytest.mark.parametrize(
    "given, error, says",
    [
        (dict(torch_dtype="auto"), ValueError, "dtype must be a floating-point type of torch"),
        (dict(dtype=torch.int8), ValueError, "not torch.int8"),
        (dict(device="tpu"), ValueError, "'tpu' cannot be used"),
        (dict(device_map={"": "cpu"}), ValueError, "device: {'': 'cpu'} cannot be used"),
        (dict(map_location="meta"), ValueError, "'meta' cannot be used"),
        (dict(low_cpu_mem_usage=True), TypeError, "^low_cpu_mem_usage is no argument"),
        (dict(flor=0.2), TypeError, "^flor is no argument of .*floor"),
        (dict(strict=False), ValueError, "strict must be True"),
        (dict(width=8), DataError, "another model"),
        (dict(width="x"), DataError, "with {'width': 'x'}"),
    ],
)
def test_arguments_that_are_not_known_are_named(saved, given, error, says):
    with pytest.raises(error, match=says):
        SAAAE.from_pretrained(saved, **given)


def test_arguments_of_the_model_replace_its_configs(saved, tmp_path):
    model = SAAAE.from_pretrained(saved, floor=0.2)
    model.save_pretrained(tmp_path)
    assert model.floor == SAAAE.from_pretrained(tmp_path).floor == 0.2 and SAAAE.from_pretrained(saved).floor == 0.1
    assert own(conditioned_kind(ClassConditional, SAAAE), classes=3).save_pretrained(tmp_path / "told") is None
    with pytest.raises(TypeError, match="clases is no argument"):
        ClassConditional.from_pretrained(tmp_path / "told", clases=3)


@pytest.mark.parametrize(
    "given, error, says",
    [
        (dict(safe_serialization=False), ValueError, "safe_serialization must be True"),
        (dict(variant="fp16"), TypeError, "^variant is no argument of save_pretrained"),
    ],
)
def test_what_save_pretrained_cannot_do_is_said(tmp_path, given, error, says):
    own().save_pretrained(tmp_path / "taken", safe_serialization=True)
    for model in (own(), anchor(own(VAE))):
        with pytest.raises(error, match=says):
            model.save_pretrained(tmp_path / "refused", **given)
    assert not (tmp_path / "refused").exists()


def test_folders_are_found_however_they_are_named(saved, monkeypatch):
    monkeypatch.setenv("HOME", str(saved.parent))
    monkeypatch.chdir(saved.parent)
    weights = ("~/model/model.safetensors", saved / "model.safetensors")
    for name in (saved, f"{saved}/", "model", "./model/", "~/model", Path("~/model"), *weights):
        assert SAAAE.from_pretrained(name).floor == 0.1
    for name in ("~/gated", "gated/", "gated/model.safetensors"):
        assert anchored(VAE).from_pretrained(name).anchor.floor == 0.1
    own(VAE).save_pretrained("~/again")
    assert (saved.parent / "again" / "config.json").exists()


def test_what_is_no_model_is_said_without_asking_the_hub(saved, tmp_path, monkeypatch):
    monkeypatch.setattr("saaae.runs.pretrained.hf_hub_download", lambda *a, **k: pytest.fail("The Hub was asked."))
    monkeypatch.chdir(tmp_path)
    Path("runs/one").mkdir(parents=True)
    torch.save(own().state_dict(), "runs/last.ckpt")
    shutil.copytree(saved, "runs/pickle")
    Path("runs/pickle/model.safetensors").rename("runs/pickle/pytorch_model.bin")
    shutil.copy(saved / "model.safetensors", "runs/vae.safetensors")
    refused = {
        "runs/last.ckpt": "is a file",
        "runs/vae.safetensors": "is a file",
        "runs/one": "has no config.json",
        "runs/pickle": "has no model.safetensors.*pickles are not opened",
        PRETRAINED / "photos64": "load_run",
        "a" * 300: "neither",
        "~none/m": "neither",
    }
    for name, says in refused.items():
        with pytest.raises(ValueError, match=says):
            SAAAE.from_pretrained(name)
    with pytest.raises(FileNotFoundError, match="is a file"):
        anchored(VAE).from_pretrained("runs/last.ckpt")


def test_what_the_hub_does_not_have_is_said(monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*args, **given):
        raise LocalEntryNotFoundError("No connection.\nTry again.")

    monkeypatch.setattr("saaae.runs.pretrained.hf_hub_download", offline)
    says = r"^runs/mine is no folder here, and the Hub gives no \S+ of it: No connection.$"
    for kind in (VAE, anchored(VAE)):
        with pytest.raises(DataError, match=says):
            kind.from_pretrained("runs/mine")


# Run folders


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    quietly(train_or_load, build_models(CFG), some(), CFG, folder := tmp_path_factory.mktemp("finished") / "run")
    return folder


@pytest.mark.parametrize("name", ["a b", "größe", "#1", "100%20", "[x]", "*", "new\nline", "写真"])
def test_a_run_may_be_moved_to_any_name(finished, tmp_path, name):
    shutil.copytree(finished, tmp_path / name)
    assert set(load_run(tmp_path / name, "cpu")[1]) == {"vae", "saaae"}
    assert not train_or_load(build_models(CFG), some(), CFG, tmp_path / name)
    rows, said = read_runs(find_runs(str(tmp_path / name))[0])
    assert len(rows) == 4 and not said
    own().save_pretrained(tmp_path / name / "model")
    SAAAE.from_pretrained(tmp_path / name / "model")


def edited(path):
    "As editors and spreadsheets of Windows save a file: with a mark and other line ends."
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))


def test_files_that_an_editor_saved_again_are_read(finished, saved, tmp_path):
    shutil.copytree(finished, run := tmp_path / "run")
    shutil.copytree(saved, model := tmp_path / "model")
    for path in (run / "config.json", run / "metrics.csv", model / "config.json"):
        edited(path)
    assert load_run(run, "cpu")[0] == CFG and len(read_runs([run])[0]) == 4
    assert not train_or_load(build_models(CFG), some(), CFG, run)
    SAAAE.from_pretrained(model)


def test_a_run_goes_on_behind_a_table_that_an_editor_saved_again(tmp_path):
    quietly(train, build_models(CFG), some(), CFG, tmp_path)
    metrics = (tmp_path / "metrics.csv").read_bytes()
    edited(tmp_path / "metrics.csv")
    _, said = quietly(train, build_models(CFG), some(), CFG, tmp_path)
    assert "after epoch 2" in said and (tmp_path / "metrics.csv").read_bytes() == metrics


def test_home_and_paths_as_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert run_folder("~/run", CFG) == run_folder(Path("~/run"), CFG) == tmp_path / "run"
    quietly(train, build_models(CFG), some(), CFG, "~/run")
    assert len(load_run("~/run", "cpu")[1]) == 2 and not Path("~").exists()
    assert len(read_runs(find_runs("~/ru*")[0])[0]) == 4


def test_a_run_of_another_device_and_arithmetic_is_opened_here(finished, tmp_path):
    shutil.copytree(finished, run := tmp_path / "run")
    about = json.loads((run / "config.json").read_text())
    about["config"] |= dict(arithmetic="tf32", device="cuda:3")
    (run / "config.json").write_text(json.dumps(about))
    assert load_run(run, "cpu")[0] == CFG
    with pytest.raises(ValueError, match="^device: 'tpu' cannot be used"):
        load_run(run, "tpu")  # its config is right


def test_no_error_advises_deleting():
    for path in (ROOT / "saaae").rglob("*.py"):
        if path.name == "stl10.py":
            continue  # which names the damaged files of a download
        assert "delete" not in path.read_text().lower(), path


def test_a_damaged_table_of_speeds_stops_nothing_for_good(tmp_path):
    quietly(train, build_models(CFG), some(), CFG, tmp_path)
    (tmp_path / "speed.csv").write_text("model;epoch\n1;2\n")
    again = lambda: quietly(train, build_models(CFG), some(), CFG, tmp_path)
    with pytest.raises(TrainingError, match="speed.csv is damaged.*moving it away"):
        again()
    (tmp_path / "speed.csv").unlink()
    assert "after epoch 2" in again()[1]


# An installed package


def test_an_installed_package_writes_nothing_beside_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(runs_folder, "CLONE", None)
    monkeypatch.chdir(tmp_path)
    assert run_folder(None, CFG) == tmp_path / "results" / "small"
    assert runs_folder.git_state() == dict(commit=None, modified=None)


def test_the_commit_is_this_programs_and_not_that_of_a_repository_around_it(tmp_path, monkeypatch):
    copy = tmp_path / "copies" / "saaae-main"
    (copy / "saaae").mkdir(parents=True)
    (copy / "saaae" / "training.py").write_text("")
    (tmp_path / "mine.py").write_text("")

    def git(*args):
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-C", tmp_path, *args]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init"), git("add", "mine.py"), git("commit", "-m", "mine")
    monkeypatch.setattr(runs_folder, "CLONE", copy)
    assert runs_folder.git_state() == dict(commit=None, modified=None)
    git("add", "."), git("commit", "-m", "with it")
    assert runs_folder.git_state() == dict(commit=git("rev-parse", "HEAD"), modified=False)
