"A gate of one's own beside the others: in a cell, and in a file that papermill names."

import json

import numpy as np
import pytest
from conftest import papermill
from PIL import Image

from saaae import compare
from saaae.config import ConfigError
from saaae.models import VAE

TOY = dict(epochs=1, train_images=48, test_images=12, width=2, latent=8, batch_size=16, device="cpu")


def test_the_method_written_as_a_gate_of_ones_own_is_the_method(tmp_path):
    def plain(importance):
        return 1 - importance

    result = compare(plain, seed=3, **TOY)
    table = result.table.set_index("model")
    assert list(table.index[:3]) == ["vae", "saaae", "plain"] and np.isfinite(table.loc["vae", "linear_mse"])
    assert table.loc["plain"].equals(table.loc["saaae"]) and not table.loc["plain"].equals(table.loc["vae"])
    assert result.sentence.startswith("plain: squared error") and "seed 3, 1 epochs of 48" in result.sentence
    result.save(tmp_path / "plain.png")
    assert Image.open(tmp_path / "plain.png").width > 600


@pytest.mark.parametrize(
    "variant, says",
    [
        (lambda a: 2 * a, "must lie in"),
        (lambda a: a[:, :3], "at its first step"),
        (dict(epochs=7), "epochs must be the same for all"),
        (dict(no_such=7), "no_such"),
        (type("saaae", (VAE,), {}), "name of ours"),
        (7, "not 7"),
    ],
    ids=("beyond 1", "shape", "epochs", "unknown", "name", "number"),
)
def test_what_cannot_be_compared_is_refused_before_anything_is_trained(variant, says, capsys):
    with pytest.raises(ConfigError, match=says):
        compare(variant, **TOY)
    assert "img/s" not in capsys.readouterr().err


def test_papermill_takes_a_gate_from_a_file(tmp_path):
    (tmp_path / "gates.py").write_text("def late(importance):\n    return 1 - importance**2\n")
    given = dict(preset="small", epochs=1, train_images=40, test_images=12, device="cpu")
    done = papermill("variant.ipynb", tmp_path / "run", variant=f"{tmp_path / 'gates.py'}:late", **given)
    assert done.returncode == 0, done.stderr[-3000:]
    (config,) = (tmp_path / "run").rglob("config.json")
    assert json.loads(config.read_text())["config"]["gate"] == "late" and config.parent.parent.name == "late"
    done = papermill("variant.ipynb", tmp_path / "none", variant=f"{tmp_path / 'gates.py'}:early", **given)
    assert done.returncode and "has no early; it has late" in done.stderr
