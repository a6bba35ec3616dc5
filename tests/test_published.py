"""The `published` preset against a straight-line implementation of the published run, written from its description
alone: plain torch layers, default memory layout, unfused Adam, numpy's and torch's global generators."""
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from saaae.data import Images, stream_seed
from saaae.lab.controls import configure
from saaae.models import SAAAE, VAE
from saaae.training import Learner, build_models, train_epoch

N, BATCH, EPOCHS = 20, 256, 3  # one batch an epoch, at the published batch size


class StraightLine(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.conv = nn.ModuleList([nn.Conv2d(3, 64, 4, 2, 1), nn.Conv2d(64, 128, 4, 2, 1), nn.Conv2d(128, 256, 4, 2, 1), nn.Conv2d(256, 512, 4, 2, 1)])
        self.mu, self.logvar = nn.Linear(8192, 128), nn.Linear(8192, 128)
        self.up = nn.Linear(128, 8192)
        self.deconv = nn.ModuleList([nn.ConvTranspose2d(512, 256, 4, 2, 1), nn.ConvTranspose2d(256, 128, 4, 2, 1),
                                     nn.ConvTranspose2d(128, 64, 4, 2, 1), nn.ConvTranspose2d(64, 3, 4, 2, 1)])
        if attention: self.attend, self.score = nn.MultiheadAttention(4096, 1, batch_first=True), nn.Linear(12288, 128)

    def forward(self, x):
        h = x
        for conv in self.conv: h = F.relu(conv(h))
        h = h.reshape(len(x), 8192)
        mu, logvar = self.mu(h), self.logvar(h)
        eps = torch.randn_like(mu)
        if hasattr(self, "attend"):
            tokens = x.reshape(len(x), 3, 4096)
            s = F.silu(self.score(self.attend(tokens, tokens, tokens)[0].reshape(len(x), 12288)))
            s = (s - s.min()) / (s.max() - s.min())
            eps = eps * (1 - s)
        h = self.up(mu + torch.exp(0.5 * logvar) * eps).reshape(-1, 512, 4, 4)
        for i, deconv in enumerate(self.deconv): h = torch.tanh(deconv(h)) if i == 3 else F.relu(deconv(h))
        return h, mu, logvar


def mask(x):
    "16 grey patches of 8x8, shared by the batch; reseeds torch, as the published function did."
    torch.manual_seed(42)
    x = x.clone()
    for _ in range(16):
        row = np.random.randint(0, 56)
        column = np.random.randint(0, 56)
        x[:, :, row:row + 8, column:column + 8] = 0
    return x


def straight_line_losses(attention, pixels, orders):
    "The loss summed over a batch, step by step."
    np.random.seed(42)
    torch.manual_seed(42)
    model, losses = StraightLine(attention), []
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    x = pixels / 255. * 2 - 1
    for order in orders:
        batch = x[order]
        x_hat, mu, logvar = model(mask(batch))
        loss = F.mse_loss(x_hat, batch, reduction="sum") - 0.5 * torch.sum(1 + logvar - mu**2 - logvar.exp())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", ["vae", "saaae"])
def test_losses_of_the_first_steps(name):
    pixels = torch.from_numpy(np.random.RandomState(0).randint(0, 256, (N, 3, 64, 64)).astype(np.uint8))
    images = Images(pixels, torch.zeros(N).long(), torch.arange(N), ("noise",), "noise")
    cfg = configure("published", batch_size=BATCH, device="cpu")
    model = build_models(cfg)[name]
    assert sum(p.numel() for p in model.parameters()) == dict(vae=8_666_755, saaae=77_364_995)[name]
    learner, epochs = Learner(model, cfg, steps=EPOCHS), range(1, EPOCHS + 1)
    losses = [train_epoch(learner, images, cfg, epoch)["train_loss"] * N for epoch in epochs]
    orders = [torch.randperm(N, generator=torch.Generator().manual_seed(stream_seed(42, "order", epoch))) for epoch in epochs]
    assert losses == pytest.approx(straight_line_losses(name == "saaae", pixels, orders), rel=1e-4)


def test_presets_share_the_published_layers():
    cfg = configure("published", device="cpu")
    assert (cfg.width, cfg.latent, cfg.attention, cfg.floor, cfg.scope, cfg.kl, cfg.beta) == (64, 128, "linear", 0, "batch", "full", 1)
    with torch.device("meta"): assert [sum(p.numel() for p in m().parameters()) for m in (VAE, SAAAE)] == [8_666_755, 77_364_995]
