"""Runs of the evidence without a notebook a run: many processes that share a machine, for one with a GPU.

    python tools/run_evidence.py results/evidence --seeds 6 --workers 12 --device cuda
    make evidence     # then joins the tables, and draws the verdict

Runs that are complete, or in the tables, are skipped. Needs neither Dask nor papermill.
"""

import argparse, ast, json, os, sys, time
from contextlib import redirect_stdout
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))


def one(job):
    "A run, into its folder; returns what it was and how long it took, or what went wrong."
    variant, seed, experiment, given, commit = job
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    from saaae.lab.variants import run_path, train_and_measure

    torch.set_num_threads(1)
    began = time.monotonic()
    why = ""
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # many bars at once are of no use
            train_and_measure(variant, seed, experiment, **given)
    except Exception as e:
        why = f"{type(e).__name__}: {e}"
    config = run_path(experiment, variant, seed) / "config.json"
    if commit and config.exists():
        said = json.loads(config.read_text())
        config.write_text(json.dumps(said | dict(git=dict(commit=commit, modified=False)), indent=1))
    for weights in run_path(experiment, variant, seed).glob("*.safetensors"):
        if (variant, seed) != ("saaae", 0):  # of which the evidence draws maps
            weights.unlink()
    return variant, seed, time.monotonic() - began, why


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("experiment", type=Path, help="the experiment's folder")
    p.add_argument("--variants", nargs="*", help="default: all of the evidence")
    p.add_argument("--seeds", type=int, nargs=2, default=(0, 6), metavar=("FIRST", "END"))
    p.add_argument("--workers", type=int, default=2)
    p.add_argument("--seconds", type=float, default=float("inf"), help="begin no run after so many")
    p.add_argument("--commit", help="of the sources, where they are a copy that git knows nothing of")
    p.add_argument("given", nargs="*", help="fields of the config, as name=value")
    args = p.parse_intermixed_args()
    values = dict(pair.split("=", 1) for pair in args.given)

    def literal(text):
        try:
            return ast.literal_eval(text)
        except (SyntaxError, ValueError):
            return text

    given = {name: literal(text) for name, text in values.items()}
    from saaae.lab.variants import NEEDS, VARIANTS, run_path

    names = args.variants or list(VARIANTS)
    grid = [(v, s) for s in range(*args.seeds) for v in names]
    lines = args.experiment / "runs.jsonl"  # a clone has the tables alone
    known = map(json.loads, lines.read_text().splitlines() if lines.exists() else ())
    made = {(line["variant"], line["seed"]) for line in known}
    done = lambda run: run in made or (run_path(args.experiment, *run) / "evaluation.csv").exists()
    grid = [run for run in grid if not done(run)]
    began, failed = time.monotonic(), 0
    with get_context("spawn").Pool(args.workers) as pool:
        for needing in (False, True):  # what needs another run's results comes last
            jobs = [(v, s, args.experiment, given, args.commit) for v, s in grid if (v in NEEDS) is needing]
            for variant, seed, seconds, why in pool.imap_unordered(one, jobs):
                failed += bool(why)
                print(f"{time.monotonic() - began:6.0f} s: {variant} {seed} took {seconds:.1f} s {why}", flush=True)
                if time.monotonic() - began > args.seconds:
                    print("Out of time.")
                    pool.terminate()
                    return 1
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
