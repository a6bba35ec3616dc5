"""Plan training on many GPUs on paper: `python docs/scaling.py` writes results/scaling/plan.csv and plan.md. Counts
are of the package's own models; the rest follows from `ASSUMED`."""

import math
from pathlib import Path

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode
from saaae.models import SAAAE, VAE

SIZE, WIDTH, LATENT, BATCH = 64, 64, 128, 256  # published
MODELS = {
    "VAE": lambda: VAE(SIZE, WIDTH, LATENT),
    "SAAAE linear": lambda: SAAAE(SIZE, WIDTH, LATENT, "linear", 0.1),
    "SAAAE patch": lambda: SAAAE(SIZE, WIDTH, LATENT, "patch", 0.1),
}
ASSUMED = {  # value, unit, what it is
    "peak": (494.7e12, "FLOP/s", "an H100's dense TF32 rate by its data sheet"),
    "share": (0.2, "", "of it that a step reaches"),
    "floor": (2e-3, "s", "the least time of a step, however few images: kernels are started one by one"),
    "fast": (50e9, "B/s", "what a GPU sends and receives: a 400 Gb/s network card for each"),
    "slow": (1.5625e9, "B/s", "the same where 8 GPUs share a card of 100 Gb/s"),
    "hop": (1e-5, "s", "from one process to the next, for the smallest message"),
    "disk": (2e9, "B/s", "writing a checkpoint"),
    "hash": (1e9, "B/s", "its SHA-256, on one core"),
    "draws": (2e8, "1/s", "random whole numbers of NumPy, on one core"),
    "memory": (80e9, "B", "of a GPU"),
    "images": (1_281_167, "", "training images, as ImageNet has"),
    "held_out": (50_000, "", "validation images"),
}
A = {name: value for name, (value, *_) in ASSUMED.items()}


def parameters(model: str) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in MODELS[model]().parameters())


def step_flops(model: str, batch: int) -> int:
    "Floating-point operations of a step, forwards and backwards, counted by torch on tensors without memory."
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        net, x = MODELS[model](), torch.empty(batch, 3, SIZE, SIZE)
        x_hat, q = net(x)
        ((x_hat - x).square().sum() + q.kl().sum()).backward()
    return counter.get_total_flops()


def ring_bytes(size: int, n: int) -> float:
    """What each of n processes sends when they sum `size` bytes around a ring: n - 1 parts to sum, n - 1 to spread the
    sums."""
    return 2 * (n - 1) / n * size


def exchange(size: int, n: int, link: str) -> float:
    "Seconds of that sum."
    return ring_bytes(size, n) / A[link] + 2 * (n - 1) * A["hop"]


def compute(model: str, batch: int) -> float:
    "Seconds of a step's arithmetic on one GPU."
    return max(A["floor"], step_flops(model, batch) / (A["peak"] * A["share"]))


def step(model: str, gpus: int, each: int, link: str) -> dict:
    """A step of `each` images on each of `gpus`: the exchange follows the arithmetic, as it does here; `hidden`: what
    would be left if it ran beside it."""
    worked, sent = compute(model, each), exchange(4 * parameters(model), gpus, link) if gpus > 1 else 0.0
    total, batch = worked + sent, gpus * each
    return dict(
        model=model,
        link=link,
        gpus=gpus,
        images_a_gpu=each,
        batch=batch,
        compute_ms=1e3 * worked,
        exchange_ms=1e3 * sent,
        efficiency=worked / total,
        hidden=worked / max(worked, sent),
        images_per_s=batch / total,
        read_mb_per_s_a_gpu=each * 3 * SIZE**2 / total / 1e6,
        steps_an_epoch=math.ceil(A["images"] / batch),
        epoch_s=math.ceil(A["images"] / batch) * total,
    )


def to_markdown(rows: list[dict]) -> str:
    "A table; what begins with a digit everywhere and is short stands on the right."
    right = lambda column: all(str(r[column])[0].isdigit() and len(str(r[column])) < 30 for r in rows)
    rule = "".join("---:|" if right(column) else "---|" for column in rows[0])
    return "\n".join(
        ["| " + " | ".join(rows[0]) + " |", "|" + rule, *("| " + " | ".join(map(str, r.values())) + " |" for r in rows)]
    )


def plan() -> tuple[pd.DataFrame, str]:
    "The table of steps, and the page's tables and sentences."
    steps = pd.DataFrame(
        [
            step(model, gpus, each, link)
            for model in MODELS
            for link in ("fast", "slow")
            for gpus, each in ((1, 256), (8, 32), (64, 4), (256, 1), (1000, 1), (1000, 16), (1000, 256), (1000, 1024))
        ]
    )
    at = steps.set_index(["model", "link", "gpus", "images_a_gpu"]).sort_index()
    images_per_s = at.images_per_s
    exchanged = [
        {
            "model": m,
            "parameters": f"{(p := parameters(m)):,}",
            "gradient": f"{4 * p / 1e6:.1f} MB",
            "sent by each of 1,000": f"{ring_bytes(4 * p, 1000) / 1e6:.1f} MB",
            **{f"{link}, 8": f"{1e3 * exchange(4 * p, 8, link):.1f} ms" for link in ("fast", "slow")},
            **{f"{link}, 1,000": f"{1e3 * exchange(4 * p, 1000, link):.1f} ms" for link in ("fast", "slow")},
            "a step of 256 on one GPU": f"{1e3 * compute(m, BATCH):.1f} ms",
        }
        for m in MODELS
    ]
    strong = [
        {
            "model": m,
            **{
                f"{n} GPUs": f"{images_per_s[m, 'fast', n, BATCH // n] / images_per_s[m, 'fast', 1, BATCH]:.2f}"
                for n in (8, 64, 256)
            },
        }
        for m in MODELS
    ]
    weak = [
        {
            "model": m,
            "images a GPU": f"{each:,}",
            "arithmetic, ms": f"{r.compute_ms:.1f}",
            "exchange, ms": f"{r.exchange_ms:.1f}",
            "efficiency": f"{r.efficiency:.0%}",
            "if hidden": f"{r.hidden:.0%}",
            "M images/s": f"{r.images_per_s / 1e6:.2f}",
            "MB/s read by a GPU": f"{r.read_mb_per_s_a_gpu:.1f}",
            "steps an epoch": f"{r.steps_an_epoch:,.0f}",
            "epoch, s": f"{r.epoch_s:.2f}",
        }
        for m in ("VAE", "SAAAE linear")
        for each in (1, 16, 256, 1024)
        for r in [at.loc[m, "fast", 1000, each]]
    ]
    both = parameters("VAE") + parameters("SAAAE linear")
    saved, stored = 12 * both, A["images"] * 3 * SIZE**2
    saving = saved / A["disk"] + saved / A["hash"]
    passes = (
        sum(step_flops(m, BATCH) for m in ("VAE", "SAAAE linear")) / BATCH / 3 / (A["peak"] * A["share"])
    )  # forwards is a third
    evaluating, largest = passes * A["held_out"], 1000 * BATCH
    rest = [
        {
            "what": "data, decoded, 3 x 64 x 64 bytes an image",
            "how much": f"{stored / 1e9:.1f} GB",
            "for whom": f"{stored / A['memory']:.0%} of each GPU's memory, or a file on each machine",
        },
        {
            "what": "memory of a GPU for both models: weights, gradients, two moments, the gradient in one piece and "
                    "its sum",
            "how much": f"{24 * both / 1e9:.2f} GB",
            "for whom": f"{24 * both / A['memory']:.1%} of it: nothing needs to be split",
        },
        {
            "what": "checkpoint of both models: weights and two moments",
            "how much": f"{saved / 1e9:.2f} GB",
            "for whom": f"{saving:.1f} s of the main process, in which the others wait: {saving / (60 + saving):.1%} "
                        f"of the time at one a minute",
        },
        {
            "what": "state sent at the start",
            "how much": f"{saved / 1e9:.2f} GB",
            "for whom": f"{saved / A['fast']:.2f} s on the fast link, {saved / A['slow']:.1f} s on the slow one, where "
                        f"all receive at once",
        },
        {
            "what": f"evaluation of both models on {A['held_out']:,} images by the main process",
            "how much": f"{evaluating:.1f} s",
            "for whom": f"the others wait, as long as for "
                        f"{evaluating / sum(at.epoch_s[m, 'fast', 1000, 256] for m in ('VAE', 'SAAAE linear')):.1f} "
                        f"epochs at 256 images a GPU: evaluate rarely",
        },
        {
            "what": f"noise of the codes for a whole batch of {largest:,}, drawn by all",
            "how much": f"{largest * LATENT * 4 / 1e6:.0f} MB",
            "for whom": "each GPU, to keep its thousandth",
        },
        {
            "what": "noise of the pixels for that batch, where noise_std is above 0",
            "how much": f"{largest * 3 * SIZE**2 * 4 / 1e9:.1f} GB",
            "for whom": f"{largest * 3 * SIZE**2 * 4 / A['memory']:.0%} of each GPU's memory",
        },
        {
            "what": "corners of the masks for that batch, 16 patches an image",
            "how much": f"{largest * 32 / 1e6:.1f} M numbers",
            "for whom": f"{1e3 * largest * 32 / A['draws']:.0f} ms of a core at each step",
        },
    ]
    slow, fast = (at.loc["SAAAE linear", link, 1000, 256] for link in ("slow", "fast"))
    vae = at.loc["VAE", "fast", 1000, 256]
    drawing = 1e3 * largest * 32 / A["draws"]
    limits = "\n".join(
        [
            f"1. **The batch.** {BATCH} images, as published, occupy at most {BATCH} GPUs, and there the speed is "
            f"{strong[1]['256 GPUs']} times that of one GPU (SAAAE linear). A thousand GPUs with {BATCH} images each "
            f"have a batch of {largest:,}: {fast.steps_an_epoch:.0f} steps an epoch. "
            f"As many steps as the published 3,000 epochs of 5,000 images ({3000 * math.ceil(5000 / BATCH):,}) would "
            f"be {3000 * math.ceil(5000 / BATCH) / fast.steps_an_epoch:,.0f} epochs. Whether such a batch learns as "
            f"much an image is not known here: nothing of the kind was run.",
            f"2. **The masks.** They come from NumPy on one core, for the whole batch: {drawing:.0f} ms a step, beside "
            f"{fast.compute_ms:.1f} ms of arithmetic and {fast.exchange_ms:.1f} ms of exchange on the fast link (SAAAE "
            f"linear, {BATCH} images a GPU). Random numbers that are counted by image, so that a process draws its own "
            f"only, would mend it, and change the numbers of every run.",
            f"3. **The exchange.** Of the arithmetic and exchange of a step, it takes {1 - fast.efficiency:.0%} on the "
            f"fast link and {1 - slow.efficiency:.0%} on the slow one (SAAAE linear, {BATCH} images a GPU; VAE, fast: "
            f"{1 - vae.efficiency:.0%}). {1e3 * 2 * 999 * A['hop']:.0f} ms of it are the ring's {2 * 999:,} hops, "
            f"which a tree needs {2 * math.ceil(math.log2(1000))} of; sums that begin while the gradient is still "
            f"computed would hide it down to what `hidden` leaves.",
            f"4. **The main process.** A checkpoint makes the others wait {saving:.1f} s, an evaluation "
            f"{evaluating:.1f} s.",
            f"5. **The data.** Decoded once, they are read at {fast.read_mb_per_s_a_gpu:.0f} MB/s a GPU, "
            f"{fast.read_mb_per_s_a_gpu / 125:.1f} GB/s a machine of 8, from memory: they fit. A network disk that all "
            f"read at once would need {fast.read_mb_per_s_a_gpu:.0f} GB/s.",
        ]
    )
    assumed = [
        {"assumed": name, "value": f"{value:,.15g} {unit}".strip(), "what": what}
        for name, (value, unit, what) in ASSUMED.items()
    ]
    text = "\n\n".join(
        [
            "**What is exchanged at each step**",
            to_markdown(exchanged),
            "**The published batch of 256 on more GPUs, fast link: speed in units of one GPU's**",
            to_markdown(strong),
            "**1,000 GPUs, fast link**",
            to_markdown(weak),
            "**What else there is**",
            to_markdown(rest),
            "**What limits**",
            limits,
            "**Assumptions**",
            to_markdown(assumed),
        ]
    )
    return steps.round(6), text + "\n"


def main(out: Path) -> None:
    steps, text = plan()
    out.mkdir(parents=True, exist_ok=True)
    steps.to_csv(out / "plan.csv", index=False)
    (out / "plan.md").write_text(text)


if __name__ == "__main__":
    main(Path(__file__).resolve().parent.parent / "results" / "scaling")
