"""Anchored models of CompressAI, in an environment of its own: its wheel wants an older numpy than ours, and works with
ours. Fetched from the registry."""

import os, subprocess, sys

import pytest
from conftest import ROOT

PROGRAM = """
import copy, pickle
import torch
from compressai.models import JointAutoregressiveHierarchicalPriors, MeanScaleHyperprior, ScaleHyperprior
from saaae import anchor

torch.manual_seed(0)
x = torch.rand(2, 3, 128, 192)
for kind in (MeanScaleHyperprior, ScaleHyperprior):
    plain = kind(16, 24).eval()
    model = anchor(plain, floor=.2).eval()
    assert isinstance(model, kind) and not hasattr(plain.gaussian_conditional, "anchor")
    model.update()
    with torch.no_grad():
        seen, sent = model(x), model.compress(x)
        decoded = model.decompress(sent["strings"], sent["shape"])["x_hat"]
        assert torch.allclose(decoded, seen["x_hat"].clamp(0, 1), atol=1e-5)
        bits = sum(-p.log2().sum().item() for p in seen["likelihoods"].values())
        written = 8 * sum(len(string) for strings in sent["strings"] for string in strings)
        assert bits < written < 1.05 * bits + 400, (bits, written)  # a coder's last words
        assert torch.equal(anchor(plain, floor=1.)(x)["x_hat"], plain(x)["x_hat"])
        finer, coarser = (sum(-p.log2().sum() for p in m(x)["likelihoods"].values()) for m in (model, plain))
        assert finer > coarser
    again = anchor(kind(16, 24), floor=.2)
    again.load_state_dict(model.state_dict())
    for copied in (again.eval(), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad(): assert torch.equal(copied(x)["x_hat"], seen["x_hat"])
    model.train()(x)["likelihoods"]["y"].log().sum().backward()
    assert model.gaussian_conditional.anchor.attention.score.weight.grad.abs().sum() > 0
try: anchor(JointAutoregressiveHierarchicalPriors(16, 24))
except TypeError as e: assert "does not decode all scales before the latents" in str(e)
else: raise AssertionError("not refused")
print("all is well")
"""


@pytest.mark.slow
def test_real_bytes_there_and_back(tmp_path):
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
    subprocess.run([*pip, "--target", tmp_path, "-r", ROOT / "requirements.peer"], check=True)
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        cwd=tmp_path,
        env=dict(os.environ, PYTHONPATH=f"{tmp_path}:{ROOT}"),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0 and "all is well" in run.stdout, run.stderr[-3000:]
