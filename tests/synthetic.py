"""Results of networks of any size, tiled from those of a tiny one."""

import json

import numpy as np


def tiled(result, layers, heads, seed=0):
    """Return a result with the given numbers of layers and heads, whose heads differ by random factors."""
    rng = np.random.default_rng(seed)
    sizes = result.sizes
    larger = result.isel(layer=np.arange(layers) % sizes["layer"], head=np.arange(heads) % sizes["head"])
    larger = larger.assign_coords(layer=np.arange(layers), head=np.arange(heads))
    factor = larger["layer"] * 0.0 + larger["head"] * 0.0 + rng.lognormal(0.0, 0.6, (layers, heads))
    for name, array in larger.items():
        if array.dtype.kind == "f" and {"layer", "head"} <= set(array.dims) and not str(name).endswith("_null"):
            factors = abs(factor) if str(name).endswith(("_interval", "_std", "_se")) else factor
            larger[name] = (array * factors).transpose(*array.dims).assign_attrs(array.attrs)
    config = json.loads(result.attrs["config"])
    config["model"] |= {"n_layers": layers, "n_heads": heads}
    return larger.assign_attrs(config=json.dumps(config))
