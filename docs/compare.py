"""Time a training step of our VAE and of pythae's around the same layers: `python docs/compare.py` writes
results/compare/steps.csv."""

import platform, time
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
from pythae.models import VAE as PythaeVAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from saaae.data import batches
from saaae.sources.photos64 import photos64
from saaae.models import SAAAE, VAE

SIZE, WIDTH, LATENT, BATCH, ROUNDS, STEPS = 64, 16, 128, 64, 5, 10


class Encoder(BaseEncoder):
    "The encoder of our VAE, as pythae wants one."

    def __init__(self, vae: VAE):
        super().__init__()
        self.vae = vae

    def forward(self, x: torch.Tensor) -> ModelOutput:
        mu, logvar = self.vae.encode(x)
        return ModelOutput(embedding=mu, log_covariance=logvar)


class Decoder(BaseDecoder):
    "Its decoder."

    def __init__(self, vae: VAE):
        super().__init__()
        self.decoder = vae.decoder

    def forward(self, z: torch.Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=self.decoder(z))


def pythae_vae() -> PythaeVAE:
    vae = VAE(SIZE, WIDTH, LATENT)
    decoder = Decoder(vae)
    del vae.decoder  # each weight once
    return PythaeVAE(VAEConfig(input_dim=(3, SIZE, SIZE), latent_dim=LATENT), Encoder(vae), decoder)


def our_loss(model: VAE, x: torch.Tensor) -> torch.Tensor:
    "Half the squared error and the KL: pythae's objective."
    x_hat, q = model(x)
    return ((x_hat - x).square().sum() / 2 + q.kl("exact").sum()) / len(x)


def main(out: Path) -> None:
    "Rounds of steps, the models in turn, so that a machine that slows down slows all of them."
    torch.manual_seed(0)
    torch.set_num_threads(1)
    x = next(batches(photos64("train").first(BATCH), BATCH))
    models = {
        "saaae VAE": (VAE(SIZE, WIDTH, LATENT), our_loss),
        "pythae VAE": (pythae_vae(), lambda model, x: model(dict(data=x)).loss),
        "saaae SAAAE (patch attention)": (SAAAE(SIZE, WIDTH, LATENT, attention="patch", floor=0.1), our_loss),
    }
    optimizers = {name: torch.optim.Adam(model.parameters(), 1e-3) for name, (model, _) in models.items()}
    seconds = {name: [] for name in models}
    for turn in range(ROUNDS + 1):
        for name, (model, loss) in models.items():
            begun = time.perf_counter()
            for _ in range(STEPS):
                optimizers[name].zero_grad()
                loss(model, x).backward()
                optimizers[name].step()
            if turn:
                seconds[name].append((time.perf_counter() - begun) / STEPS)  # the first round warms up
    table = pd.DataFrame(
        [
            dict(
                model=name,
                parameters=sum(p.numel() for p in model.parameters()),
                ms_a_step=round(1e3 * pd.Series(seconds[name]).median(), 1),
                fastest=round(1e3 * min(seconds[name]), 1),
                slowest=round(1e3 * max(seconds[name]), 1),
            )
            for name, (model, _) in models.items()
        ]
    )
    table["what"] = (
        f"batch {BATCH}, {SIZE}x{SIZE}, width {WIDTH}, latent {LATENT}, 1 thread, median of {ROUNDS} rounds of {STEPS} "
        f"steps"
    )
    table["versions"] = (
        f"torch {torch.__version__}, pythae {version('pythae')}, saaae {version('saaae')}, {platform.machine()}"
    )
    out.mkdir(parents=True, exist_ok=True)
    table.to_csv(out / "steps.csv", index=False)
    rows = [
        f"| {r.model} | {r.parameters:,} | {r.ms_a_step} | {r.fastest} to {r.slowest} |" for r in table.itertuples()
    ]
    (out / "steps.md").write_text(
        "\n".join(
            [
                "| model | parameters | ms a step, median | range |",
                "|---|---:|---:|---:|",
                *rows,
                "",
                f"{table.what[0]}; {table.versions[0]}.",
            ]
        )
        + "\n"
    )


if __name__ == "__main__":
    main(Path(__file__).resolve().parent.parent / "results" / "compare")
