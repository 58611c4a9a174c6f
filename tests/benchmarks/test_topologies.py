"""`--topology`: names, descriptions of chips, missing compilers; the programs where the compilers are installed."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import jax
import pytest

from inception_jax import benchmark
from inception_jax.benchmarks import (
    compile_only,
    gpu_targets,
    hardware,
    program_report,
    report,
    topologies,
    weak_scaling,
    workload,
)
from inception_jax.errors import UserError
from inception_jax.training import step_numbers
from inception_jax.training.parallel import Devices

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "experiments" / "accelerator_programs" / "accelerator_programs.py"


@pytest.mark.parametrize("name", ["h300", "", "h200:0", "h200:2x2", "h200:12", "v5e:", "v5e:2x", "v5e:axb", "tpu"])
def test_a_name_that_is_none_is_one_line(name):
    with pytest.raises(UserError, match=r"--topology='.*': (must be one of h200, h100, a100 .*|give the number)"):
        topologies.describe(name)


@pytest.mark.parametrize(("name", "wheel"), [("h200", "jax-cuda13-plugin"), ("v5e:2x2", "libtpu")])
def test_a_missing_compiler_is_one_line_that_installs_it(name, wheel, monkeypatch):
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as error:
        benchmark.main([f"--topology={name}", "--model=inception_v1"])
    extra = {"h200": "cuda13", "v5e:2x2": "tpu"}[name]
    assert f"wheel {wheel}" in str(error.value) and "\n" not in str(error.value)
    assert f"pip install 'jax[{extra}]=={jax.__version__}'" in str(error.value)


def test_what_a_compiler_refuses_is_one_line(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("INVALID_ARGUMENT: no such slice\nand more")

    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(topologies.topologies, "get_topology_desc", refuse)
    with pytest.raises(
        UserError, match=r"--topology=v5e:1x9: the compiler does not take it: INVALID_ARGUMENT: no such sl"
    ):
        topologies.describe("v5e:1x9")


def test_flags_that_need_a_device():
    for flag in ("--largest_batch", "--vs=torch", "--data"):
        with pytest.raises(UserError, match=r"has no effect with --topology"):
            benchmark.main(["--topology=h200", "--model=inception_v1", flag])
    with pytest.raises(UserError, match="nothing can be measured on hardware that is not here"):
        benchmark.main(["--topology=h200", "--model=inception_v1", "--peak_tflops=measure"])


@pytest.mark.parametrize("name", gpu_targets.GPU_TARGETS)
def test_the_text_of_a_gpu(name):
    target = gpu_targets.GPU_TARGETS[name]
    text = target.text((9, 12, 1))
    assert text.count("{") == text.count("}")
    assert 'dnn_version: "9.12.1"' in text and "major: 9 minor: 12 patch: 1" in text
    chip = hardware.find_chip(target.device_kind)
    assert chip is not None and chip.bandwidth == target.bandwidth
    shared = int(re.search(r"shared_memory_per_core: (\d+)", text)[1])
    assert int(re.search(r"shared_memory_per_block_optin: (\d+)", text)[1]) == shared - 1024


def test_a_setup_for_described_devices_asks_nothing_of_this_machine(monkeypatch):
    """Batches that this machine could not hold, on devices that are as good as not here."""
    described = jax.devices()[:4]
    recipe = workload.config_of_model("inception_v1", 10)
    workload.set_fields(recipe, {"batch_size": 4 * 65536, "data.image_size": 224})
    setup = workload.build_setup(recipe, described)
    assert setup.devices.described and setup.devices.count == setup.devices.local_count == 4
    assert setup.devices.process_count == 1 and not Devices("jit", 2).described
    with pytest.raises(UserError, match="need at least"):
        workload.build_setup(recipe)


@pytest.fixture(scope="module")
def setup(two_modules):
    """A setup for two CPU devices, as if described."""
    recipe = workload.config_of_model(two_modules, 10)
    workload.set_fields(recipe, {"batch_size": 4, "data.image_size": 32, "model.width_multiplier": 0.25})
    return workload.build_setup(recipe, tuple(jax.devices()[:2]))


@pytest.fixture(scope="module")
def described(setup):
    """The content of the JSON file of a training step for these devices."""
    devices = tuple(setup.devices.mesh.devices.flat)
    topology = topologies.Topology("h200:2", "h200", (2,), devices, 10**9, "made up 1.0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(compile_only.MEMORY_FRACTION, "cpu", 1.0)
        limits = hardware.Limits(1e12, 1e10, "given")
        return compile_only.compile_steps(setup, topology, ("train",), limits, lambda line: None)


def test_what_is_read_from_the_programs(described, setup):
    train = described["train"]
    properties = train["program"]["properties"]
    numbers = len(jax.tree.leaves(step_numbers.read_numbers(setup)))
    assert properties["aliased"] == properties["donated"] == properties["arguments"] - numbers - 3 > 10
    ((reduction),) = train["program"]["collectives"]
    assert reduction["opcode"] == "all-reduce" and reduction["bytes"] > 4 * described["parameters"]
    assert train["weak_scaling"]["rows"][0]["devices"] == 8
    assert train["memory"]["largest_batch"] > 4 and train["memory"]["largest_batch"] % 2 == 0
    assert {"conv1", "inception_4a", "aux1", "the rest"} <= {row["block"] for row in train["program"]["blocks"]}
    assert train["flops"]["per_image"] > train["flops"]["inside_per_image"] > 0
    assert train["program"]["small_kernels"] <= train["program"]["kernels"]


@pytest.mark.parametrize(
    ("chip", "devices", "seconds"),
    [
        ("h200", 1, 0),
        ("h200", 8, 2 * (7 / 8 * 54e6 / 450e9 + 7e-6)),
        ("h200", 16, 2 * (7 / 8 * 54e6 / 450e9 + 7e-6) + 2 * (54e6 / 8 / 2 / 50e9 + 5e-6)),
        ("v5e", 64, 2 * (63 / 64 * 54e6 / 100e9 + 14e-6)),  # no rings: half of the rate
        ("v5e", 256, 2 * (255 / 256 * 54e6 / 200e9 + 30e-6)),
    ],
)
def test_the_time_of_an_all_reduce(chip, devices, seconds):
    """By hand, from the model in the module's docstring, of 54 MB."""
    assert weak_scaling.all_reduce_seconds(54e6, devices, weak_scaling.LINKS[chip]) == pytest.approx(seconds)


def test_the_report_and_the_difference_from_a_measurement(described):
    text = program_report.format_programs(described)
    for words in (
        "compiled by made up 1.0 for h200:2; nothing ran",
        "a batch of about",
        "1 x all-reduce of",
        "images/s), kernel after kernel, ",
        "; small kernels beside that",
    ):
        assert words in text
    assert re.search(r"\n +1,024 .* %", text)
    measured = json.loads(json.dumps(described))
    measured["train"]["program"]["small_kernel_seconds"] = None  # as of a TPU
    assert "; small kernels" not in program_report.format_programs(measured)
    del measured["topology"]
    measured["train"]["step_seconds"] = {"median": 2 * measured["train"].pop("program")["seconds"]}
    lines = report.format_difference(described, measured, ("a", "b")).splitlines()
    assert [line.split()[-1] for line in lines if line.startswith("step, bound / median")] == ["2.000"]


# --- With the compilers ----------------------------------------------------------------------------------------------

PLUGINS = {"h200": ("jax_cuda13_plugin", "INCEPTION_JAX_GPU_PYTHON"), "v5e": ("libtpu", "INCEPTION_JAX_TPU_PYTHON")}


def compiler_python(topology):
    """A Python that has the compiler."""
    plugin, variable = PLUGINS[topology.partition(":")[0]]
    python = os.environ.get(variable) or (sys.executable if find_spec(plugin) else None)
    if python is None:
        pytest.skip(f"no compiler for {topology}: {plugin} is not installed, and {variable} names no Python with it")
    return python


ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
ENVIRONMENT |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="session")
def run_compiler(tmp_path_factory):
    """`run_compiler(topology, *command)`: runs a Python that has the compiler; returns the folder of its files.

    In the command `{}` stands for the folder.
    """

    def run(topology, *command):
        output = tmp_path_factory.mktemp("programs")
        command = [compiler_python(topology), *(part.format(output) for part in command), f"--topology={topology}"]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        return output

    return run


def pieces_of(file):
    return {row["piece"]: row["program"] for row in json.loads(file.read_text())["pieces"]}


@pytest.mark.slow  # a compiler for accelerators takes a CPU-minute or two for all pieces
@pytest.mark.parametrize(
    "topology", [file.name.partition("_")[0] for file in sorted(SCRIPT.parent.glob("*_pieces.json"))]
)
def test_pieces(topology, run_compiler):
    """Kernels and bytes are at most those of the files in experiments/accelerator_programs, which the table shows."""
    kept = pieces_of(SCRIPT.parent / f"{topology}_pieces.json")
    output = run_compiler(topology, str(SCRIPT), "--output={}", *(f"--piece={name}" for name in kept))
    found = pieces_of(output / f"{topology}_pieces.json")
    assert found.keys() == kept.keys()
    for name, program in found.items():
        properties = program["properties"]
        # On TPUs products are convolutions: in float32 LRN's window sum, and a head's classifier.
        in_float32 = topology == "v5e" and name in ("LRN", "auxiliary head")
        dtypes = {"bf16", "f32", "pred"} if in_float32 else {"bf16"}
        assert properties["half_precision_sums"] == [] and set(properties["convolution_dtypes"]) <= dtypes, name
        assert topology == "v5e" or properties["scatters"] == 0, name
        assert program["kernels"] <= 1.05 * kept[name]["kernels"], name
        # On a TPU the compiler counts what a select-and-scatter reads twice.
        found_bytes, kept_bytes = ((row.get("compiler") or row)["bytes"] for row in (program, kept[name]))
        assert found_bytes <= 1.02 * kept_bytes, name
    assert "| max pool 3x3/1 " in (output / "table.md").read_text()


@pytest.mark.slow
def test_two_compilations_for_tpus_at_a_time():
    """libtpu locks the machine's TPUs for a process; and what it says of machines is not for one without a TPU."""
    code = (
        "from inception_jax.benchmarks import topologies; print(topologies.describe('v5e').chip, flush=True); input()"
    )
    command, pipe = [compiler_python("v5e"), "-c", code], subprocess.PIPE
    with subprocess.Popen(command, env=ENVIRONMENT, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as first:
        assert first.stdout.readline() == "v5e\n"  # and it waits
        second = subprocess.run(command, env=ENVIRONMENT, input="\n", capture_output=True, text=True)
        _, errors = first.communicate("\n")
    assert (second.returncode, second.stdout, second.stderr, errors) == (0, "v5e\n", "", "")


WHOLE = ("-m", "inception_jax.benchmark", "--model=inception_v1")
TWO_MODULES = (
    str(Path(__file__).with_name("two_modules.py")), "--model=two_modules", "--image_size=32",
    "--set=width_multiplier=0.25",
)  # fmt: skip


@pytest.mark.slow  # GoogLeNet takes one and a half CPU-minutes for a GPU, and more than eight for a TPU
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("topology", "network"), [("h200:8", WHOLE), ("v5e:2x2", TWO_MODULES)])
def test_a_training_step(topology, network, run_compiler):
    """One all-reduce, of all gradients; every leaf of the state written over; nothing in 16 bits that must not be."""
    command = [*network, "--dtype=bfloat16", "--what=train"]
    content = json.loads((run_compiler(topology, *command, "--json={}/step.json") / "step.json").read_text())
    program = content["train"]["program"]
    (reduction,) = program["collectives"]
    assert reduction["opcode"] == "all-reduce" and reduction["runs"] == 1
    assert reduction["bytes"] == pytest.approx(4 * content["parameters"], rel=1e-4)
    properties = program["properties"]
    # On a TPU the products of LRN and of the classifiers, in float32, are convolutions, too.
    dtypes = {"bf16", "f32", "pred"} if topology.startswith("v5e") else {"bf16"}
    assert set(properties["convolution_dtypes"]) <= dtypes and properties["half_precision_sums"] == []
    assert properties["aliased"] == properties["donated"] > 2 * 12  # parameters and momentum of twelve layers at least
    assert topology.startswith("v5e") or properties["scatters"] == 0
    work = content["train"]["flops"]["inside_per_image"]
    if topology.startswith("h200"):
        # The stem sees 2x2 pixels as channels: 8x8 taps in the place of 7x7, forward and in the gradient of its kernel.
        work += 2 * (2 * 112**2 * 64 * 3 * (8**2 - 7**2))
    work *= content["task"]["batch_size"] / content["task"]["devices"]
    assert program["flops"] == pytest.approx(work, rel=0.01) or (topology.startswith("v5e") and program["flops"] > work)
    assert content["train"]["memory"]["largest_batch"] > content["task"]["batch_size"]
