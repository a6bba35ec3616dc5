"Number types, devices without float64, and memory: docs/faults.md says what is promised."

import itertools, math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from saaae.lab.pixel_weights import AIMS
from saaae.apps.conditional import codes, decode
from saaae.data import DataError
from saaae.sources.photos64 import photos64
from saaae.evaluation import evaluate, evaluate_images, plot_grid
from saaae.lab.faithfulness import removal_curves, sensitivity
from saaae.lab.controls import configure
from saaae.models import VAE
from saaae.precision import temper
from saaae.lab.rates import map_rows, rebuild, region_rows
from saaae.reparameterization import AnchoredGaussian, RateError, solve_rate
from saaae.apps.restoration import region_psnr
from saaae.training import Learner, build_model, train_epoch
from saaae.lab.variants import active_units, fitted_rate, prior_distance

HALF = (torch.float16, torch.bfloat16)
TYPES = (*HALF, torch.float32, torch.float64)
CFG = configure("small", image_size=32, patch_size=4, width=2, latent=6, epochs=1, batch_size=4, device="cpu")
SPATIAL, PRECISE = dict(latent="spatial"), dict(gate="precision", t_range=4.0)
CONDITIONED, VARIES = dict(gate="off", multirate="conditioned", t_range=4.0), dict(noise_std=0.3, noise_varies=True)
REGION = torch.zeros(1, 1, 32, 32)
REGION[..., 8:24, 8:24] = 1
close = torch.testing.assert_close


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def holes(n):
    return torch.rand(n, 1, 32, 32, generator=seeded()) < 0.2


@pytest.fixture(scope="module")
def images():
    return photos64("test", 20, 32)


@pytest.fixture(scope="module")
def batch():
    return 2 * torch.rand(3, 3, 32, 32, generator=seeded()) - 1


def talkative(cfg=CFG, **fields):
    "An untrained model whose codes carry something."
    model = build_model(replace(cfg, **fields)).eval()
    with torch.no_grad():
        model.to_mu.weight.mul_(100), model.to_logvar.bias.sub_(2)
    return model


def tempered(mu, logvar, t, hold):
    "Mean, variance and KL of q^t p^(1-t) by its definition, in float64."
    variance = logvar.clamp(-30, 20).exp()
    t = torch.where(variance < 1, t, t.clamp(max=1))
    precision = 1 + t * (1 / variance - 1)
    grows = t / (variance * precision)
    mean = mu * (grows.clamp(max=1) if hold else grows)
    return mean, 1 / precision, (mean**2 + 1 / precision - 1 + precision.log()) / 2


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_posteriors_of_every_type_are_right(kind):
    "Against float64, for all that a model can say; float32 rounds the terms of a sum, which are up to |ln sigma^2|."
    levels = itertools.product([0.0, 0.7, -30, 1e4], np.arange(-30, 21, 2.5), [1e-4, 0.1, 0.7, 1])
    given = [v[:, None].to(kind).requires_grad_() for v in torch.tensor(np.array([*levels])).T]
    q, (mu, logvar, gate) = AnchoredGaussian(*given), (v.detach().double() for v in given)
    full, exact = ((mu**2 + (g**2 * logvar.exp()) - 1 - logvar) / 2 - g.log() for g in (torch.ones_like(gate), gate))
    right = dict(full=full, exact=exact, decoupled=gate * full, decoupled_hard=(gate >= 0.5) * full)
    fits = lambda found, expected: close(found.double(), expected, rtol=2e-5, atol=1e-5)
    for name, expected in right.items():
        fits(q.kl(name), expected[:, 0])
    for t in (0.0, 1e-9, 1e-6, 1e-3, 0.3, 0.5, 1.0, 1.5, 100.0, 1e4, 1e6):
        for hold in (False, True):
            found = q.temper(t, hold)
            mean, variance, kl = tempered(mu, logvar + 2 * gate.log(), torch.tensor(t).double(), hold)
            fits(found.mu, mean), fits(found.kl("exact"), kl[:, 0])
            close(found.std.double() ** 2, variance, rtol=2e-5, atol=0)
            assert found.sample(seeded()).isfinite().all()
    (q.kl("exact") + q.temper(0.3).kl("exact")).sum().backward()
    assert kind == torch.float16 or all(v.grad.isfinite().all() for v in given)  # exp(20) is out of its range


@pytest.mark.parametrize("kind", TYPES, ids=str)
@pytest.mark.parametrize("hold", [False, True])
def test_budgets_of_every_type_are_met_or_refused(kind, hold):
    "A posterior that is 20,000 times as wide as the prior tells one t from the next only in float64."
    draw, met, refused = seeded(), 0, 0
    for widest in (0, 20):
        logvar = (widest + 30) * torch.rand(20, 12, generator=draw) - 30
        mu = torch.randn(20, 12, generator=draw) * 10 ** (4 * torch.rand(20, 12, generator=draw) - 1)
        q = AnchoredGaussian(mu.to(kind), logvar.to(kind), (10 ** (-4 * torch.rand(20, 12, generator=draw))).to(kind))
        for share in (0, 1e-9, 1e-6, 1e-3, 0.1, 0.5, 0.99):
            budget = share * q.temper(1e6, hold).rate_bits()
            try:
                t = solve_rate(q, budget, hold_mean=hold)
            except RateError as e:
                assert widest == 20 and kind != torch.float64 and "cannot be met in float32" in str(e)
                refused += 1
            else:
                close(q.temper(t, hold).rate_bits(), budget, rtol=1e-3, atol=1e-4)
                met += 1
    assert met >= 10 and (refused == 0 or kind != torch.float64)


def test_a_budget_comes_as_any_kind_of_number(batch):
    model = talkative()
    five = torch.full((3,), 5.0)
    for budget in (
        5,
        5.0,
        np.float64(5),
        np.int64(5),
        np.full(3, 5.0),
        [5, 5, 5],
        torch.tensor(5),
        five.half(),
        five.clone().requires_grad_(),
    ):
        close(model.reconstruct(batch, rate_bits=budget).rate_bits, torch.full((3,), 5.0), rtol=1e-3, atol=0)
    expected = model.reconstruct(batch, t=2.0, generator=seeded()).x_hat
    for t in (2, np.float64(2), np.full((3, 1), 2.0), torch.full((3, 1), 2).long(), torch.tensor(2.0).double()):
        for profile in (1, np.ones(6), torch.ones(6).double()):
            close(model.reconstruct(batch, t=t, profile=profile, generator=seeded()).x_hat, expected)
    with pytest.raises(RateError, match=r"one for each of 3 images, not shape \(3, 1\)"):
        model.reconstruct(batch, rate_bits=torch.ones(3, 1))
    for t in (-1.0, math.nan):
        with pytest.raises(RateError, match="at least 0"):
            model.reconstruct(batch, t=t)
    with torch.inference_mode():
        close(model.reconstruct(batch, rate_bits=5).rate_bits, five, rtol=1e-3, atol=0)
    for kind in HALF:
        with torch.autocast("cpu", kind), torch.no_grad():
            close(model.reconstruct(batch, rate_bits=5).rate_bits, five, rtol=1e-3, atol=0)
    for n in (0, 1):
        assert model.reconstruct(batch[:n], rate_bits=5).x_hat.shape == (n, 3, 32, 32)
    with torch.no_grad():
        model.to_mu.bias.fill_(math.nan)
    with pytest.raises(RateError, match="at most nan"):
        model.reconstruct(batch, rate_bits=5)


@pytest.mark.parametrize("kind", [*HALF, torch.float64], ids=str)
@pytest.mark.parametrize("more", [{}, dict(gate="matched"), SPATIAL, dict(classes=10), CONDITIONED], ids=str)
def test_a_whole_model_of_another_type_gives_the_same(kind, more, images, batch):
    "Give or take what its type rounds off: 2^-8 of a value of about 1 in each of a dozen layers, in bfloat16."
    cfg = replace(CFG, **more)
    model, other = build_model(cfg).eval(), build_model(cfg).eval().to(kind)
    cond = dict(y=torch.arange(3)) if cfg.classes else {}
    tolerance = dict(rtol=0, atol=1e-5 if kind == torch.float64 else 0.05)
    for x in (batch, batch.to(kind)):
        close(other(x, sample=False, **cond)[0].float(), model(batch, sample=False, **cond)[0], **tolerance)
    if cfg.multirate == "tempered":
        found = other.reconstruct(batch, rate_bits=0.01, **cond).rate_bits.float()
        close(found, torch.full((3,), 0.01), rtol=1e-3, atol=1e-5)
    a, b = (evaluate(m, images, cfg, sample=False) for m in (model, other))
    for name in ("mse", "ssim"):
        assert b[name] == pytest.approx(a[name], rel=2e-2, abs=2e-2)
    if not cfg.classes:
        assert plot_grid(dict(saaae=other), images, cfg, 1).axes


def test_tools_of_another_type(images, batch):
    "A VAE that is not ours in float16."
    x = batch

    class Theirs(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.vae = VAE(32, 2, 8)

        def encode(self, x):
            return self.vae.heads(self.vae.encoder(x))

        def decode(self, z):
            return self.vae.decoder(z)

    their = temper(Theirs().half()).reconstruct(x.half(), rate_bits=0.01)
    assert their.x_hat.dtype == torch.float16 and their.x_hat.isfinite().all()
    close(their.rate_bits, torch.full((3,), 0.01), rtol=1e-3, atol=1e-5)


def test_images_of_another_type(batch):
    model = talkative()
    expected = model.reconstruct(batch, generator=seeded()).x_hat
    for x in (batch.double(), batch.contiguous(memory_format=torch.channels_last)):
        close(model.reconstruct(x, generator=seeded()).x_hat, expected)
    with pytest.raises(TypeError, match=r"images in \[-1, 1\], not torch.uint8: saaae.data.normalize"):
        model.reconstruct(batch.byte())


@pytest.mark.parametrize(
    "more",
    [{}, dict(noise_std=0.1), VARIES, dict(aim="edges"), dict(aim="foreground"), dict(t_range=4.0), CONDITIONED],
    ids=str,
)
def test_another_default_type_changes_nothing_but_digits(more, images):
    cfg = replace(CFG, **more)
    model = build_model(cfg)
    plain = evaluate(model, images, cfg, sample=False)["mse"]
    torch.set_default_dtype(torch.float64)
    try:
        if not cfg.noise_std:
            assert evaluate(model, images, cfg, sample=False)["mse"] == pytest.approx(plain, rel=1e-5)
        assert math.isfinite(evaluate(model, images, cfg)["mse"])
        for m in (model, build_model(cfg)):
            assert math.isfinite(train_epoch(Learner(m, cfg, 5), images, cfg, 1)["train_loss"])
    finally:
        torch.set_default_dtype(torch.float32)


def test_another_default_device_changes_nothing(images, batch):
    "The one that this machine has besides: what lands on it by mistake has no numbers."

    def figures(model, learner):
        rates = model.reconstruct(batch, rate_bits=3.0, generator=seeded()).rate_bits.tolist()
        return [evaluate(model, images, CFG)["mse"], *rates, train_epoch(learner, images, CFG, 1)["train_loss"]]

    (a, b), (c, d) = ((talkative(), Learner(talkative(), CFG, 5)) for _ in range(2))
    plain = figures(a, b)
    torch.set_default_device("meta")
    try:
        found = figures(c, d)
    finally:
        torch.set_default_device(None)
    assert found == pytest.approx(plain, rel=1e-5)


class Apple(TorchFunctionMode):
    """Every tensor counts as one of a device without float64, but what is put on "cpu" and what follows from it alone.
    Like Apple's GPUs it makes nothing in float64, gives nothing to NumPy, and does not mix with the CPU. The device is
    called "cpu:0"; as `tensor.device`, which generators have too, it is the other way round: index 0 is the CPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out, name, flat = func(*args, **kwargs), getattr(func, "__name__", ""), [*args, *kwargs.values()]
        if name == "__get__" and isinstance(out, torch.device):
            return torch.device("cpu:0" if self.on_cpu(args[0]) else "cpu")
        flat += [v for value in flat if isinstance(value, (list, tuple)) for v in value]
        tensors = [v for v in flat if isinstance(v, torch.Tensor)]
        places = [v == "cpu" for v in flat if isinstance(v, str) and v[:3] == "cpu"] if name != "cpu" else [True]
        places += [v.index == 0 for v in flat if isinstance(v, torch.device)]
        if name == "to":
            places += map(self.on_cpu, tensors[1:])
        here = places[0] if places else all(map(self.on_cpu, tensors))
        made = [v for v in (out if isinstance(out, (list, tuple)) else (out,)) if isinstance(v, torch.Tensor)]
        if name in ("numpy", "__array__") and not here:
            raise TypeError("can't convert this device's tensor to numpy.")
        if not here and torch.float64 in [v.dtype for v in made]:
            raise TypeError(f"{name}: no float64 on this device.")
        mixes = len({self.on_cpu(v) for v in tensors if v.dim()}) > 1 and name not in ("copy_", "__getitem__")
        if mixes and not places:
            raise RuntimeError(f"{name}: tensors of two devices.")
        if places and any(out is v for v in tensors):
            (out,) = made = [out.view_as(out)]  # what was there stays there
        for v in made:
            v.here = here
        return out

    @staticmethod
    def on_cpu(v):
        return getattr(v, "here", v.dtype == torch.float64)


def test_the_device_without_float64_refuses_what_it_should():
    x = torch.rand(3)
    with Apple():
        for wrong in (
            x.double,
            x.numpy,
            lambda: x.sum(dtype=torch.float64),
            lambda: torch.as_tensor(np.ones(2), device=x.device),
            lambda: torch.tensor(1.0, dtype=torch.float64, device="cpu:0"),
        ):
            with pytest.raises(TypeError):
                wrong()
        with pytest.raises(RuntimeError, match="two devices"):
            x + x.cpu()
        assert x.cpu().double().dtype == torch.float64 and x.cpu().numpy().shape == (3,)


@pytest.mark.parametrize("more", [{}, SPATIAL, PRECISE, VARIES, dict(classes=10)], ids=str)
def test_nothing_needs_float64_on_the_device(more, images, batch):
    "A device without float64, as Apple's GPUs are: simulated."
    cfg = replace(CFG, device="cpu:0", **more)
    model, learner, few = talkative(cfg), Learner(build_model(cfg), cfg, 5), images.first(6)
    cond = dict(y=torch.arange(3)) if cfg.classes else {}
    masks, few.groups.here = holes(6), True  # which photograph an image is of stays in memory
    with Apple():
        assert math.isfinite(train_epoch(learner, images, cfg, 1)["train_loss"])
        assert math.isfinite(evaluate(model, few, cfg)["psnr_db"])
        for budget in (2.0, np.float64(2), 2 + 0 * batch[:, 0, 0, 0]):
            model.reconstruct(batch, rate_bits=budget, profile=np.float64(1), **cond)
        model.reconstruct(batch, t=np.float64(2), **cond)
        if cfg.classes:
            return
        plot_grid(dict(saaae=model), few, cfg, 1)
        region_psnr(batch, batch, batch[:, :1] > 0)
        codes(model, few, cfg)
        if cfg.gate == "precision":
            region_rows(model, few.first(2), cfg, masks[:2], REGION)
        if cfg.latent == "spatial":
            return
        removal_curves(model, few, cfg), sensitivity(model, few, cfg, sets=2)
        prior_distance(model, few, cfg), fitted_rate(model, few, few, cfg)


GATES = ("attention", "shuffled_dimensions", "shuffled_images", "random", "matched", "off")
CASES = [
    *(dict(gate=g) for g in GATES),
    dict(normalize="batch"),
    dict(noise_std=0.3),
    VARIES,
    dict(shared_masks=True),
    dict(classes=10),
    CONDITIONED,
]


@pytest.mark.parametrize("more", CASES, ids=str)
def test_figures_do_not_depend_on_the_batch_size(more, images):
    "Give or take float32's rounding in sums of another shape; 6 numbers fill no block of the generator's."
    found = {}
    for size in (256, 16, 3, 1):
        cfg = replace(CFG, batch_size=size, **more)
        found[size] = evaluate_images(talkative(cfg), images, cfg)
    for size in (16, 3, 1):
        np.testing.assert_allclose(found[size], found[256], rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("batch_size", [3, 64])
def test_other_measurements_do_not_depend_on_the_batch_size(batch_size, images, monkeypatch):
    monkeypatch.setattr("saaae.lab.rates.LEVELS", (0.5,)), monkeypatch.setattr("saaae.lab.rates.CONTRASTS", (4.0,))

    def found(size):
        cfg = replace(CFG, batch_size=size, gate="precision", t_range=4.0)
        model, _x = talkative(cfg), 2 * images.pixels / 255 - 1
        tables = [
            removal_curves(model, images, cfg),
            sensitivity(model, images, cfg, sets=4),
            region_rows(model, images.first(6), cfg, holes(6), REGION),
        ]
        figures = [
            f(*given, cfg)
            for f, given in {
                active_units: (model, images),
                fitted_rate: (model, images, images),
                prior_distance: (model, images),
            }.items()
        ]
        return [
            *(t.select_dtypes("number") for t in tables),
            *figures,
            *codes(model, images, cfg),
        ]

    for a, b in zip(found(batch_size), found(256)):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4)


def largest(model, call):
    "The most images that the model's networks are given at once."
    seen = []
    hooks = [
        getattr(model, name).register_forward_hook(lambda _, given, out: seen.append(len(given[0])))
        for name in ("encoder", "decoder", "attention")
        if hasattr(model, name)
    ]
    call()
    for hook in hooks:
        hook.remove()
    return max(seen)


def test_memory_is_bounded_by_the_batch_size(images):
    cfg, model = CFG, talkative()
    masks, _x = torch.zeros(20, 1, 32, 32, dtype=torch.bool), 2 * images.pixels / 255 - 1
    calls = dict(
        train=lambda: train_epoch(Learner(model, cfg, 5), images, cfg, 1),
        evaluate=lambda: evaluate(model, images, cfg),
        grid=lambda: plot_grid(dict(saaae=model), images, cfg, 1),
        rebuild=lambda: rebuild(model, images, cfg, masks, lambda q, x, seen: solve_rate(q, q.rate_bits() / 2)),
        removal=lambda: removal_curves(model, images, cfg, steps=2),
        sensitivity=lambda: sensitivity(model, images, cfg, sets=2),
        units=lambda: active_units(model, images, cfg),
        fitted=lambda: fitted_rate(model, images, images, cfg),
        prior=lambda: prior_distance(model, images, cfg),
        codes=lambda: codes(model, images, cfg),
        decode=lambda: decode(model, torch.zeros(20, 6), images.labels, 4),
    )
    for name, call in calls.items():
        assert largest(model, call) == 4, name


def test_hidden_places_count_for_the_images_that_they_are_in(images, monkeypatch):
    "The oracle of the aim `mask` is given each image's own mask, wherever its batch begins."
    cfg, few = replace(CFG, gate="precision", t_range=4.0), images.first(6)
    masks, given = holes(6), []

    def oracle(model, q, x, weights, rate_bits):
        given.append(weights)
        return 1.0

    monkeypatch.setattr("saaae.lab.rates.oracle_profile", oracle), monkeypatch.setattr("saaae.lab.rates.BENDS", (1.0,))
    map_rows(talkative(cfg), few, few, cfg, masks)
    weights = torch.cat(given).reshape(len(AIMS), 6, 1, 32, 32)[list(AIMS).index("hidden")]
    close(weights / weights.amax((1, 2, 3), keepdim=True), 0.1 + 0.9 * masks.float())


def test_no_images_are_said_to_be_none(images):
    with pytest.raises(DataError, match="has no images to measure"):
        evaluate(talkative(), images.first(0), CFG)


@pytest.mark.parametrize("bank", [False, True])
def test_noise_is_fresh_for_every_image_of_every_step_unless_it_is_banked(bank, monkeypatch):
    from saaae.lab.controls import configure
    from saaae.reparameterization import AnchoredGaussian
    from saaae.sources.photos64 import photos64
    from saaae.training import Learner, build_model, train_epoch

    drawn, sample = [], AnchoredGaussian.sample

    def record(self, generator=None):
        z = sample(self, generator)
        drawn.append(((z - self.mu) / self.std).detach())
        return z

    monkeypatch.setattr(AnchoredGaussian, "sample", record)
    cfg = configure(
        "small", image_size=16, patch_size=4, width=2, latent=4, batch_size=5, epochs=2, noise_bank=bank, device="cpu"
    )
    learner, images = Learner(build_model(cfg), cfg, 8), photos64("train", 20, 16)
    for epoch in (1, 2):
        train_epoch(learner, images, cfg, epoch)
    eps = torch.cat(drawn)
    distinct = len({tuple(round(v, 3) for v in row) for row in eps.tolist()})
    assert len(eps) == 40 and (distinct < 40 if bank else distinct == 40)
    assert eps.mean().abs() < 0.4 and 0.6 < eps.std() < 1.4
