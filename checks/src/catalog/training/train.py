"""A small training run with a fixed seed on every core of an accelerator, and the same on the CPU for reference.

Prints one JSON object a line: what JAX found, then the losses of the runs as the bits of 32-bit floats, so that two runs
can be compared exactly; cores with the same curve stand together. It judges nothing.

    python3 train.py PLATFORM STEPS WIDTH      PLATFORM: gpu, neuron or cpu
"""

import json
import os
import sys
import time

PLATFORM, STEPS, WIDTH = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
BATCH = 256

# Before JAX starts: sums in a fixed order, the same algorithm on all cores, and memory for more than ourselves.
os.environ["XLA_FLAGS"] = " ".join([
    os.environ.get("XLA_FLAGS", ""),
    {
        "gpu": "--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0",
        "cpu": "--xla_force_host_platform_device_count=4",
    }.get(PLATFORM, ""),
]).strip()
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
# GPUs are numbered as NVML numbers them.
os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
os.environ["JAX_PLATFORMS"] = {"gpu": "cuda,cpu", "neuron": "neuron,cpu", "cpu": "cpu"}[PLATFORM]


def say(**what):
    print(json.dumps(what), flush=True)


try:
    import jax
    import jax.numpy as jnp
    import numpy as np
except ImportError as error:
    say(event="missing", module=error.name or "jax", why=str(error)[:300])
    sys.exit(0)


def values(seed, rows, columns):
    """The same numbers on every machine, from a counter and not from a library's generator."""
    count = np.arange(rows * columns, dtype=np.uint64) + np.uint64(seed << 32)
    # SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
    count = (count + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    count = (count ^ (count >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    count = (count ^ (count >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    count ^= count >> np.uint64(31)
    unit = (count >> np.uint64(40)).astype(np.float64) / float(1 << 24) - 0.5
    return unit.reshape(rows, columns).astype(np.float32)


def problem():
    """Inputs, what a fixed network makes of them, and the weights that training begins with."""
    x = values(1, BATCH, WIDTH)
    scale = 3.0 / np.sqrt(WIDTH)
    y = np.tanh(x @ (values(2, WIDTH, WIDTH) * scale * 4)).astype(np.float32)
    weights = [values(seed, WIDTH, WIDTH) * scale for seed in (3, 4, 5)]
    return x, y, weights


def train(dtype):
    def loss(weights, x, y):
        h = x.astype(dtype)
        for w in weights[:-1]:
            h = jnp.tanh(h @ w.astype(dtype))
        h = h @ weights[-1].astype(dtype)
        return jnp.mean((h.astype(jnp.float32) - y) ** 2)

    def step(state, _, x, y):
        weights, momentum = state
        value, slope = jax.value_and_grad(loss)(weights, x, y)
        momentum = [0.9 * m + g for m, g in zip(momentum, slope)]
        weights = [w - 0.2 * m for w, m in zip(weights, momentum)]
        return (weights, momentum), value

    def run(x, y, weights):
        with jax.default_matmul_precision("highest"):
            state = (weights, [jnp.zeros_like(w) for w in weights])
            _, losses = jax.lax.scan(lambda s, i: step(s, i, x, y), state, None, length=STEPS)
        return losses

    return run


def bits(losses):
    """The exact values: two curves are the same only if these are."""
    return [int(word) for word in np.asarray(losses, dtype=np.float32).view(np.uint32)]


def number(core):
    """The core's number on the node, whichever of them this process may see."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if PLATFORM == "gpu" else []
    seen = visible[core.id] if core.id < len(visible) else ""
    return int(seen) if seen.isdigit() else core.id


def main():
    try:
        cores = jax.local_devices(backend={"gpu": "cuda"}.get(PLATFORM, PLATFORM))
    except RuntimeError as error:
        say(event="missing", module=PLATFORM, why=str(error)[:300])
        return
    say(event="found", jax=jax.__version__, cores=[{"id": number(c), "kind": c.device_kind} for c in cores])
    x, y, weights = problem()
    host = jax.local_devices(backend="cpu")[0]
    for name, dtype in (("float32", jnp.float32), ("bfloat16", jnp.bfloat16)):
        with jax.default_device(host):
            placed = jax.device_put((x, y, weights), host)
            say(event="reference", dtype=name, bits=bits(jax.jit(train(dtype))(*placed)))
        # One program for all cores, so that each does the very same operations in the very same order.
        together = jax.pmap(train(dtype), devices=cores)
        replicated = jax.tree.map(lambda array: np.stack([array] * len(cores)), (x, y, weights))
        jax.block_until_ready(together(*replicated))
        begun = time.monotonic()
        losses = np.asarray(jax.block_until_ready(together(*replicated)))
        say(event="timed", dtype=name, seconds=time.monotonic() - begun)
        curves = {}
        for core, curve in zip(cores, losses):
            curves.setdefault(tuple(bits(curve)), []).append(number(core))
        for curve, ids in curves.items():
            say(event="losses", dtype=name, cores=ids, bits=curve)
    say(event="done")


main()
