"""Anchoring for any VAE: diffusers and pythae as they are installed, folders, the Hub's calls, and the tutorial at toy
size."""

import json, math, re, shutil, subprocess, sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, papermill, rows
from torch.distributions import Normal, kl_divergence

from saaae.anchoring import anchor, anchored
from saaae.runs.anchored import ANCHOR, read_gate
from saaae.data import normalize
from saaae.sources.files import read_tensors, save_tensors
from saaae.sources.photos64 import photos64
from saaae.models import VAE
from saaae.precision import temper

diffusers = pytest.importorskip("diffusers")
pythae_models = pytest.importorskip("pythae.models")
TOY = dict(steps=3, train_images=20, test_images=8, batch_size=10, width=2, device="cpu")
QUIET = dict(low_cpu_mem_usage=False)  # diffusers asks for another package otherwise


@pytest.fixture(scope="module")
def x():
    return normalize(photos64("train", 8, 32).pixels)


def small(size=32):
    "A small AutoencoderKL, always the same."
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=size,
    )


def train_steps(model, x, steps=4, clip=None):
    """As a user of diffusers trains, with or without clipped gradients: losses, and what is left of the random
    generator."""
    torch.manual_seed(1)
    optimizer, losses = torch.optim.AdamW(model.train().parameters(), 2e-3), []
    for _ in range(steps):
        q = model.encode(x).latent_dist
        loss = (model.decode(q.sample()).sample - x).square().sum() + q.kl().sum()
        optimizer.zero_grad()
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses), torch.random.get_rng_state()


def same(a, b):
    "Every tensor of a is in b, to the bit."
    a, b = a.state_dict(), b.state_dict()
    return all(torch.equal(v, b[k]) for k, v in a.items())


def test_module_needs_neither_library():
    code = """if True:
        import sys
        sys.modules["diffusers"] = sys.modules["pythae"] = None  # import fails
        import torch
        from saaae.anchoring import anchor
        from saaae.models import VAE
        gate = anchor(VAE(32, 2, 4)).posterior(torch.rand(2, 3, 32, 32)).gate
        assert gate.shape == (2, 4) and (gate < 1).any()"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    code = "import sys, saaae.anchoring; assert not {'diffusers', 'pythae'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_diffusers_gate_of_one_changes_nothing(x):
    plain, given = small(), small()
    opened, gated = anchor(given, floor=1.0), anchor(given)
    assert same(plain, given) and isinstance(gated, diffusers.AutoencoderKL)
    (expected, rng), (losses, rng_after), (other, _) = (train_steps(m, x) for m in (plain, opened, gated))
    assert (
        torch.equal(expected, losses) and torch.equal(rng, rng_after) and same(plain, opened) and same(given, small())
    )
    assert not torch.equal(expected, other) and other[-1] < other[0]
    for model in (plain, opened, gated):
        model.eval()
    with torch.no_grad():
        samples = [
            m(x, sample_posterior=True, generator=torch.Generator().manual_seed(2)).sample
            for m in (plain, opened, gated)
        ]
    assert torch.equal(samples[0], samples[1]) and not torch.equal(samples[0], samples[2])


def test_diffusers_gate_of_one_changes_nothing_under_clipping(x):
    """But for rounding: the gate's gradients are zeros in the sum that makes the norm, and may be added in another
    order."""
    (expected, rng), (losses, rng_after) = (
        train_steps(m, x, clip=100.0) for m in (small(), anchor(small(), floor=1.0))
    )
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=0)
    assert torch.equal(rng, rng_after)


def test_diffusers_interface_and_price(x):
    plain, gated = small().eval(), anchor(small().eval(), attention="linear", floor=0.2)
    with torch.no_grad():
        q, p, g = gated.encode(x).latent_dist, plain.encode(x).latent_dist, gated.anchor(x)
        assert type(q) is type(p) and type(gated.encode(x)) is type(plain.encode(x)) and torch.equal(q.mode(), p.mode())
        torch.testing.assert_close(q.std, g * p.std)
        torch.testing.assert_close(q.kl(), kl_divergence(Normal(p.mean, g * p.std), Normal(0.0, 1.0)).sum((1, 2, 3)))
        torch.testing.assert_close(q.nll(p.mean), -Normal(p.mean, g * p.std).log_prob(p.mean).sum((1, 2, 3)))
        (as_tuple,) = gated.encode(x, return_dict=False)
        assert torch.equal(as_tuple.parameters, q.parameters)
        gated.enable_slicing()
        torch.testing.assert_close(gated.encode(x).latent_dist.std, q.std)
        assert gated.half().encode(x.half()).latent_dist.std.dtype == torch.float16
    with pytest.raises(ValueError, match=r"made for images of shape \(3, 32, 32\), not \(3, 64, 64\)"):
        anchor(small()).encode(torch.zeros(1, 3, 64, 64))
    assert anchor(small(), image_size=64).encode(torch.zeros(1, 3, 64, 64)).latent_dist.std.shape == (1, 4, 32, 32)


def test_diffusers_folder(x, tmp_path):
    gated = anchor(small(), floor=0.3)
    train_steps(gated, x, 2)
    gated.save_pretrained(tmp_path / "vae")
    again = anchored(diffusers.AutoencoderKL).from_pretrained(tmp_path, subfolder="vae", **QUIET)
    gated.eval()
    assert type(again) is type(gated) and not again.training and again.anchor.floor == 0.3
    with torch.no_grad():
        assert torch.equal(again.encode(x).latent_dist.parameters, gated.encode(x).latent_dist.parameters)
    plain, info = diffusers.AutoencoderKL.from_pretrained(tmp_path / "vae", output_loading_info=True, **QUIET)
    assert type(plain) is diffusers.AutoencoderKL and not any(info.values()) and same(plain, gated)
    half = anchored(diffusers.AutoencoderKL).from_pretrained(tmp_path / "vae", torch_dtype=torch.float16, **QUIET)
    assert {v.dtype for v in half.state_dict().values()} == {torch.float16}
    (tmp_path / "vae" / ANCHOR).unlink()
    with pytest.raises(FileNotFoundError, match="has no gate"):
        anchored(diffusers.AutoencoderKL).from_pretrained(tmp_path / "vae")


def test_diffusers_pipeline(tmp_path):
    "A pipeline that was saved with an anchored VAE opens again: without the gate, or with the gate if it is passed."
    unet = diffusers.UNet2DModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(4, 4),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    gated = anchor(small())
    diffusers.LDMPipeline(gated, unet, diffusers.DDIMScheduler()).save_pretrained(tmp_path)
    pipeline = diffusers.LDMPipeline.from_pretrained(tmp_path, **QUIET)
    assert type(pipeline.vqvae) is diffusers.AutoencoderKL and same(pipeline.vqvae, gated)
    vae = anchored(diffusers.AutoencoderKL).from_pretrained(tmp_path, subfolder="vqvae", **QUIET)
    assert same(gated, diffusers.LDMPipeline.from_pretrained(tmp_path, vqvae=vae, **QUIET).vqvae)


def test_budgets(x):
    gated = anchor(small()).eval()
    with torch.no_grad():
        for budget in (0.0, 40.0, torch.linspace(0, 80, len(x))):
            torch.testing.assert_close(
                temper(gated).reconstruct(x, rate_bits=budget).rate_bits,
                torch.as_tensor(budget).expand(len(x)),
                rtol=1e-3,
                atol=1e-4,
            )
        q = temper(gated).posterior(x)
        torch.testing.assert_close(q.rate_bits(), gated.encode(x).latent_dist.kl() / math.log(2))


def test_other_diffusers_models(x):
    asymmetric = diffusers.AsymmetricAutoencoderKL(
        down_block_out_channels=(4,), up_block_out_channels=(4,), norm_num_groups=4, sample_size=32
    )
    gated = anchor(asymmetric)
    assert (gated.encode(x).latent_dist.std < asymmetric.encode(x).latent_dist.std).any()
    tiny = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(4, 4),
        decoder_block_out_channels=(4, 4),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    with pytest.raises(TypeError, match="mu and logvar of a diagonal Gaussian are needed.* not AutoencoderTinyOutput"):
        anchor(tiny, image_size=32)


def pythae(name="VAE"):
    "A model of pythae's, always the same."
    torch.manual_seed(0)
    config = getattr(pythae_models, f"{name}Config", None) or getattr(pythae_models, f"{name}_Config")
    return getattr(pythae_models, name)(config(input_dim=(3, 32, 32), latent_dim=4))


@pytest.mark.parametrize(
    "name",
    [
        "VAE",
        "BetaVAE",
        "BetaTCVAE",
        "DisentangledBetaVAE",
        "INFOVAE_MMD",
        "IWAE",
        "VAE_LinNF",
        "VAE_IAF",
        "VAMP",
        "HVAE",
        "MSSSIM_VAE",
    ],
)
def test_pythae_models(name, x):
    def loss(model):
        torch.manual_seed(1)
        return model(dict(data=(x + 1) / 2), epoch=1, dataset_size=len(x)).loss

    plain = pythae(name)
    opened, gated = anchor(plain, floor=1.0), anchor(plain)
    assert (
        type(gated) is type(plain)
        and plain.model_config.uses_default_encoder
        and not gated.model_config.uses_default_encoder
    )
    expected = loss(plain)
    assert torch.equal(loss(opened), expected) and not torch.equal(loss(gated), expected)
    loss(gated).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in gated.encoder.anchor.parameters())


@pytest.mark.parametrize("name", ["AE", "SVAE", "VQVAE"])
def test_pythae_without_a_gaussian_is_refused(name):
    with pytest.raises(TypeError, match="mu and logvar of a diagonal Gaussian are needed"):
        anchor(pythae(name))


def test_pythae_trainer(x, tmp_path):
    "An epoch with pythae's own trainer, its folder, and back."
    from pythae.data.datasets import BaseDataset
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    data = (normalize(photos64("train", 40, 32).pixels) + 1) / 2

    def run(model, name):
        how = BaseTrainerConfig(
            output_dir=str(tmp_path / name),
            num_epochs=1,
            per_device_train_batch_size=10,
            learning_rate=1e-3,
            no_cuda=True,
        )
        trainer = BaseTrainer(model, BaseDataset(data, torch.zeros(len(data))), training_config=how)
        trainer.train()
        return Path(trainer.training_dir) / "final_model"

    plain, opened, gated = pythae(), anchor(pythae(), floor=1.0), anchor(pythae())
    folders = [run(m, name) for m, name in ((plain, "plain"), (opened, "opened"), (gated, "gated"))]
    assert same(plain, opened) and not same(plain, gated)
    fresh = anchor(pythae())
    assert not torch.equal(
        gated.encoder.anchor.attention.position, fresh.encoder.anchor.attention.position
    )  # the gate was trained
    images = (x + 1) / 2
    for load in (pythae_models.VAE, pythae_models.AutoModel):
        again = load.load_from_folder(str(folders[2]))
        assert type(again) is pythae_models.VAE and same(gated, again) and same(again, gated)
        with torch.no_grad():
            expected = gated.encoder.plain()(images).log_covariance + 2 * gated.encoder.anchor(images).log()
            assert torch.equal(again.encoder(images).log_covariance, expected)
        again.save(str(tmp_path / "again"))
        assert same(gated, load.load_from_folder(str(tmp_path / "again")))
    in_another_process = (
        f"from pythae.models import VAE; print(type(VAE.load_from_folder({str(folders[2])!r}).encoder.anchor).__name__)"
    )
    assert subprocess.run(
        [sys.executable, "-c", in_another_process], check=True, cwd=ROOT, capture_output=True, text=True
    ).stdout.split() == ["Anchor"]


def test_grey_images_of_pythae():
    torch.manual_seed(0)
    model = pythae_models.VAE(pythae_models.VAEConfig(input_dim=(1, 28, 28), latent_dim=4))
    digits = torch.rand(3, 1, 28, 28)
    assert anchor(model, attention="linear").encoder.anchor(digits).shape == (3, 4)
    with pytest.raises(ValueError, match="multiple of the patch"):
        anchor(model)
    flat = pythae_models.VAE(pythae_models.VAEConfig(input_dim=(784,), latent_dim=4))
    with pytest.raises(ValueError, match="pass a module of your own"):
        anchor(flat)
    assert anchor(flat, torch.nn.Linear(784, 4)).encoder.anchor(digits.flatten(1)).shape == (3, 4)


def test_hub_calls(x, tmp_path, monkeypatch):
    "What would be sent to the Hub and fetched from it; nothing leaves this machine."
    sent, fetched = tmp_path / "sent", []

    class Api:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, **kwargs):
            return type("Url", (), dict(repo_id=repo_id))

        def upload_folder(self, folder_path, **kwargs):
            shutil.copytree(folder_path, sent)

    def download(repo_id, filename, **kwargs):
        fetched.append((repo_id, filename, kwargs.get("revision")))
        return str(sent / filename)

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    monkeypatch.setattr("saaae.runs.pretrained.hf_hub_download", download)
    gated = anchor(VAE(32, 2, 4)).eval()
    gated.push_to_hub("somebody/anchored")
    assert {p.name for p in sent.iterdir()} == {"README.md", "config.json", "model.safetensors", ANCHOR}
    again = anchored(VAE).from_pretrained("somebody/anchored", revision="v1")
    assert same(gated, again) and ("somebody/anchored", ANCHOR, "v1") in fetched


@pytest.fixture(scope="module")
def gate(tmp_path_factory):
    "A gate's file, its weights, and what is said about them."
    torch.manual_seed(0)
    anchor(VAE(32, 2, 4)).save_pretrained(folder := tmp_path_factory.mktemp("gate"))
    return folder / ANCHOR, *read_tensors(folder / ANCHOR)


def test_every_flipped_bit_of_a_gate_is_refused(gate, tmp_path):
    content = gate[0].read_bytes()
    for at in [*range(8 + int.from_bytes(content[:8], "little")), *range(len(content) - 1, 5000, -len(content) // 50)]:
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        (tmp_path / ANCHOR).write_bytes(damaged)
        with pytest.raises(ValueError, match=re.escape(str(tmp_path / ANCHOR))):
            read_gate(tmp_path / ANCHOR)


@pytest.mark.parametrize(
    "said, message",
    [
        (dict(evil=1), "does not say which gate"),
        ([], "does not say which gate"),
        (dict(floor=0), "floor must be"),
        (dict(floor="x"), "refused"),
        (dict(floor=math.nan), "floor must be"),
        (dict(normalize="x"), "normalize must be"),
        (dict(attention="x"), "attention must be"),
        (dict(attention=[1]), "attention must be"),
        (dict(attention=""), "attention must be"),
        (dict(attention=None), "pass one like it"),
        (dict(input_shape="abc"), "input_shape must be"),
        (dict(input_shape=5), "refused"),
        (dict(input_shape=[3, -32, -32]), "input_shape must be"),
        (dict(attention="linear", input_shape=[3, 1024, 1024]), "another gate"),
        (dict(latent_shape=[10**9]), "another gate"),
        (dict(latent_shape=[10**30]), "refused"),
        (dict(latent_shape=[-4]), "latent_shape must be"),
        ("[" * 200_000, "cannot be read|does not say"),
        ("{", "cannot be read|does not say"),
    ],
    ids=lambda v: str(v)[:60],
)
def test_what_no_gate_says_is_refused_in_a_sentence(gate, said, message, tmp_path):
    path, weights, good = gate
    save_tensors(tmp_path / ANCHOR, weights, good | said if isinstance(said, dict) else said)
    with pytest.raises(ValueError, match=message) as e:
        read_gate(tmp_path / ANCHOR)
    assert str(tmp_path / ANCHOR) in str(e.value) and "\n" not in str(e.value) and ". " not in str(e.value)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda w: {k: v * math.nan for k, v in w.items()}, "not finite"),
        (lambda w: {k: v * math.inf for k, v in w.items()}, "not finite"),
        (lambda w: {k: v.double() + 1e300 for k, v in w.items()}, "not finite"),
        (lambda w: {k: v[:1].contiguous() for k, v in w.items()}, "another gate"),
        (lambda w: {k: v.long() for k, v in w.items()}, "another gate"),
        (lambda w: {}, "another gate"),
        (lambda w: w | {"more": torch.zeros(1)}, "another gate"),
        (lambda w: w | {"../../x": torch.zeros(1)}, "is a path"),
    ],
    ids=["NaN", "infinite", "infinite in float32", "shapes", "whole numbers", "none", "more", "path"],
)
def test_other_weights_than_a_gates_are_refused_in_a_sentence(gate, change, message, tmp_path):
    path, weights, said = gate
    save_tensors(tmp_path / ANCHOR, change(weights), said)
    with pytest.raises(ValueError, match=message) as e:
        read_gate(tmp_path / ANCHOR)
    assert str(tmp_path / ANCHOR) in str(e.value) and "\n" not in str(e.value)


def test_a_module_of_ones_own_may_hold_infinite_constants(tmp_path):
    class Masked(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.score = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32**2, 4))
            self.register_buffer("mask", torch.tensor([0.0, -math.inf]))

        def forward(self, x):
            return self.score(x)

    anchor(VAE(32, 2, 4), Masked()).save_pretrained(tmp_path)
    assert anchored(VAE).from_pretrained(tmp_path, attention=Masked()).anchor.attention.mask[1] == -math.inf


def test_tutorial(tmp_path):
    run = papermill("any_vae.ipynb", tmp_path, **TOY)
    assert run.returncode == 0, run.stderr[-3000:]
    table = rows(tmp_path / "any_vae.csv")
    assert list(table[0]) == ["method", "setting", "measure", "value", "n"] and {r["n"] for r in table} == {"8"}
    values = {(r["method"], r["setting"], r["measure"]): float(r["value"]) for r in table}
    kinds = ["ours", "own module", "diffusers", "pythae"]
    assert (
        len(values) == len(table) == 2 * 4 * 5
        and {s for _, s, _ in values} == set(kinds)
        and all(map(math.isfinite, values.values()))
    )
    for kind in kinds:
        assert (
            values["vae", kind, "gate_mean"] == 1
            and 0.1 <= values["anchored", kind, "gate_min"] < values["anchored", kind, "gate_mean"] < 1
        )
        error, bits = values["anchored", kind, "mse"], values["anchored", kind, "rate_bits"]
        assert values["anchored", kind, "loss"] == pytest.approx(
            (0.5 if kind == "pythae" else 4) * error + math.log(2) * bits, rel=1e-4
        )
    assert (
        all(f"| {kind} |" in (tmp_path / "any_vae.md").read_text() for kind in kinds)
        and (tmp_path / "any_vae.png").stat().st_size > 20_000
    )
    cells = json.loads((tmp_path / "any_vae.ipynb").read_text())["cells"]
    assert "weights, all the same" in json.dumps(cells)
    verdict = "".join(cells[-2]["outputs"][0]["data"]["text/markdown"])
    lower, higher = re.search(r"lower with the gate for (.*) and no lower for (.*)\.\n", verdict).groups()
    for kind in kinds:  # the words follow from the numbers
        assert f"{kind} (" in (lower if values["anchored", kind, "loss"] < values["vae", kind, "loss"] else higher)


def test_each_kind_takes_few_lines():
    cells = [
        "".join(c["source"])
        for c in json.loads((ROOT / "nbs" / "apps" / "any_vae.ipynb").read_text())["cells"]
        if c["cell_type"] == "code"
    ]
    using = [c for c in cells if re.search(r"models\[\"[^\"]+\"\] = .*anchor\(vae", c, re.S)]
    assert len(using) == 4 and all(len(c.splitlines()) < 20 for c in using)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(steps=0), "steps must be a whole number"),
        (dict(steps="many"), "steps must be a whole number"),
        (dict(epochs=3), "epochs is not a parameter of this notebook"),
        (dict(floor=0.0), "floor must be above 0"),
        (dict(floor=2.0), "floor must be from 0 to 1"),
        (dict(attention="conv"), "attention must be one of"),
    ],
)
def test_wrong_parameters_are_refused_by_name(cells, wrong, message, tmp_path):
    run = cells("any_vae.ipynb", tmp_path, **TOY | wrong)
    assert run.returncode != 0 and message in run.stderr and not (tmp_path / "any_vae.csv").exists()
