"""The `published` preset against a straight-line implementation of the published run, written from its description
alone: the plain layers and steps of nbs/one_page.ipynb, with the published attention, gate and masks, default memory
layout, unfused Adam, numpy's and torch's global generators."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from saaae.data import Images, stream_seed
from saaae.lab import one_page
from saaae.lab.controls import configure
from saaae.models import SAAAE, VAE
from saaae.training import Learner, build_models, train_epoch

N, BATCH, EPOCHS = 20, 256, 3  # one batch an epoch, at the published batch size
WEIGHTS = dict(vae=8_666_755, saaae=77_364_995)


class ChannelAttention(nn.Module):
    def __init__(self, size, latent):
        super().__init__()
        self.attend, self.score = nn.MultiheadAttention(4096, 1, batch_first=True), nn.Linear(12288, 128)

    def forward(self, x):
        tokens = x.reshape(len(x), 3, 4096)
        mixed, weights = self.attend(tokens, tokens, tokens)
        return F.silu(self.score(mixed.reshape(len(x), 12288))), weights


def gate(s):
    "Over the whole batch."
    return 1 - (s - s.min()) / (s.max() - s.min())


def mask(x):
    "16 grey patches of 8x8, shared by the batch; reseeds torch, as the published function did."
    torch.manual_seed(42)
    x = x.clone()
    for _ in range(16):
        row = np.random.randint(0, 56)
        column = np.random.randint(0, 56)
        x[:, :, row : row + 8, column : column + 8] = 0
    return x


def straight_line_losses(name, pixels, orders):
    "The loss summed over a batch, step by step."
    np.random.seed(42)
    torch.manual_seed(42)
    model = one_page.SAAAE(64, 64, 128, dict(vae=None, saaae=ChannelAttention)[name], gate)
    assert sum(p.numel() for p in model.parameters()) == WEIGHTS[name]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    x = pixels / 255.0 * 2 - 1
    return [one_page.step(model, optimizer, x[order], mask(x[order])) for order in orders]


@pytest.mark.parametrize("name", ["vae", "saaae"])
def test_losses_of_the_first_steps(name):
    pixels = torch.from_numpy(np.random.RandomState(0).randint(0, 256, (N, 3, 64, 64)).astype(np.uint8))
    images = Images(pixels, torch.zeros(N).long(), torch.arange(N), ("noise",), "noise")
    cfg = configure("published", batch_size=BATCH, device="cpu")
    model = build_models(cfg)[name]
    assert sum(p.numel() for p in model.parameters()) == WEIGHTS[name]
    learner, epochs = Learner(model, cfg, steps=EPOCHS), range(1, EPOCHS + 1)
    losses = [train_epoch(learner, images, cfg, epoch)["train_loss"] * N for epoch in epochs]
    generators = [torch.Generator().manual_seed(stream_seed(42, "order", epoch)) for epoch in epochs]
    orders = [torch.randperm(N, generator=generator) for generator in generators]
    assert losses == pytest.approx(straight_line_losses(name, pixels, orders), rel=1e-4)


def test_presets_share_the_published_layers():
    cfg = configure("published", device="cpu")
    published = (64, 128, "linear", 0, "batch", "full", 1)
    assert (cfg.width, cfg.latent, cfg.attention, cfg.floor, cfg.normalize, cfg.kl, cfg.beta) == published
    with torch.device("meta"):
        models = VAE(), SAAAE()
    assert [sum(p.numel() for p in m.parameters()) for m in models] == [*WEIGHTS.values()]
