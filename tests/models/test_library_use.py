"""The networks in programs of other people: what models/README.md shows and says."""

import re
from pathlib import Path

import jax
import numpy as np

import inception_jax
from inception_jax.models.inception_v1 import MODULES

PAGE = Path(inception_jax.__file__).parent / "models" / "README.md"
FEW = "min_width=4, modules={name: MODULES[name] for name in ('4a', '4d')}"


def test_the_training_step_of_the_page():
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    [code] = [block for block in blocks if "def train_step" in block]
    assert "width_multiplier=0.25" in code
    code = code.replace("width_multiplier=0.25", f"width_multiplier=0.1, {FEW}")  # compiles in less time
    names = {}
    exec("from inception_jax.models.inception_v1 import MODULES\n" + code, names)
    assert names["weights"] == (0.3, 0.3) and len(names["weights"]) == 2
    assert np.isfinite(names["loss"])
    again = names["train_step"](
        *(names[name] for name in ("variables", "opt_state", "images", "labels")), jax.random.key(1)
    )
    assert again[2] < names["loss"]


def test_one_image_of_32_pixels_in_training():
    options = {
        "width_multiplier": 0.1,
        "aux_heads": False,
        "dropout_rate": 0.0,
        "modules": {name: MODULES[name] for name in ("3b", "4e", "5a")},
    }
    model = inception_jax.create_model("inception_v1_bn", num_classes=3, **options)
    variables = inception_jax.init_variables(model, jax.random.key(0), 32)
    logits = [
        model.apply(variables, jax.random.normal(jax.random.key(k), (1, 32, 32, 3)), train=True, mutable=True)[0].logits
        for k in range(2)
    ]
    np.testing.assert_array_equal(*logits)
