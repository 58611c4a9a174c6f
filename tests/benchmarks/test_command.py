"""`python -m inception_jax.benchmark`: one real measurement, its files, and the messages for mistakes."""

import json
import re

import pytest

from inception_jax import benchmark, command_line
from inception_jax.benchmarks import measure, plot, report, roofline
from inception_jax.errors import DiskFull, UserError
from inception_jax.evaluation import results_table
from inception_jax.models.registry import ModelError


@pytest.fixture(scope="module")
def measured(tmp_path_factory, two_modules):
    """(content of the JSON file, its path, path of the plot) of one measurement."""
    directory = tmp_path_factory.mktemp("benchmark")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure.MeasurementPlan, "input_seconds", 0.3)  # 5 s of all cores, twice, show no more
        code = benchmark.main(
            [
                f"--model={two_modules}",
                "--set",
                "width_multiplier=0.25",
                "--num_classes=10",
                "--batch_size=4",
                "--image_size=32",
                "--devices=1",
                "--seconds=0.1",
                "--blocks=3",
                "--peak_tflops=0.5",
                "--bandwidth_gbs=10",
                f"--json={directory / 'a' / 'b.json'}",
                f"--plot={directory / 'b.png'}",
                f"--trace={directory / 'trace'}",
            ]
        )
    assert code == 0
    return json.loads((directory / "a" / "b.json").read_text()), directory / "a" / "b.json", directory / "b.png"


@pytest.mark.parametrize("kind", ["inference", "train"])
def test_steps_under_pmap(two_modules, kind, tmp_path):
    flags = [
        "--num_classes=10",
        "--batch_size=4",
        "--image_size=32",
        "--seconds=0.1",
        "--blocks=3",
        f"--what={kind}",
        "--no_input",
    ]
    modes = ["--mode=pmap", "--devices=2", "--set", "width_multiplier=0.1", f"--json={tmp_path / 'a.json'}"]
    modes += ["--steps_per_execution=2"] * (kind == "train")
    assert benchmark.main([f"--model={two_modules}", *flags, *modes]) == 0
    content = json.loads((tmp_path / "a.json").read_text())
    assert (content["task"]["mode"], content["task"]["devices"]) == ("pmap", 2)
    assert content["task"]["steps_per_execution"] == (2 if kind == "train" else 1)
    assert kind == "inference" or content[kind]["steps_per_block"] % 2 == 0
    assert {"inference", "train"} & set(content) == {kind} and content[kind]["step_seconds"]["median"] > 0


def test_what_is_written(measured, two_modules):
    content, _, plot_path = measured
    assert content["format"] == measure.FORMAT
    assert content["task"]["model"] == two_modules and content["task"]["width_multiplier"] == 0.25
    assert content["versions"]["jax"] and content["host"]["cores"] >= 1
    for kind in ("train", "inference"):
        part = content[kind]
        assert len(part["blocks"]) >= 3
        seconds = part["step_seconds"]
        assert min(part["blocks"]) <= seconds["p10"] <= seconds["median"] <= seconds["p90"] <= max(part["blocks"])
        assert part["images_per_second"] == pytest.approx(4 / seconds["median"])
        assert abs(part["flops"]["compiler_over_inside"] - 1) < roofline.TOLERANCE
        assert part["flops"]["utilization"] == pytest.approx(
            4 * part["flops"]["per_image"] / seconds["median"] / 0.5e12
        )
        assert part["compile"]["cold"] > 0 < part["compile"]["cached"]
        assert part["memory"]["program"]["total"] > 4 * content["parameters"] * (2 if kind == "train" else 0)
        bounds = part["roofline"]["blocks"]
        assert part["roofline"]["seconds"] == pytest.approx(sum(bound["seconds"] for bound in bounds))
        assert part["roofline"]["fraction"] == pytest.approx(part["roofline"]["seconds"] / seconds["median"])
        assert {bound["side"] for bound in bounds} <= {"compute", "memory"}
    assert "aux1" in {bound["block"] for bound in content["train"]["roofline"]["blocks"]}
    assert "aux1" not in {bound["block"] for bound in content["inference"]["roofline"]["blocks"]}
    assert content["train"]["losses"]["last_quarter"] < content["train"]["losses"]["first_quarter"]
    assert 0 <= content["input"]["fed"]["data_wait_fraction"] <= 1
    assert plot_path.read_bytes().startswith(b"\x89PNG")
    assert list((plot_path.parent / "trace" / "train").rglob("*.xplane.pb"))
    assert list((plot_path.parent / "trace" / "inference").rglob("*.xplane.pb"))


def test_the_report_has_the_numbers(measured):
    content, _, _ = measured
    text = report.format_measurement(content)
    rate = content["train"]["images_per_second"]
    assert f"{rate:,.0f} images/s" in text
    assert f"{100 * content['train']['flops']['utilization']:.1f} % of the peak" in text
    assert re.search(r"conv1 .* (compute|memory)\n", text)
    assert "FLOP/s as given" in text


def test_a_chip_without_limits_has_no_utilization_and_says_how_to_give_them(measured, tmp_path):
    content = json.loads(json.dumps(measured[0]))
    content["limits"] = {"flops": None, "bandwidth": None, "source": "'cpu' is not in the table of chips"}
    for kind in ("train", "inference"):
        content[kind]["roofline"] = content[kind]["flops"]["utilization"] = None
    text = report.format_measurement(content)
    assert "no utilization and no roofline; --peak_tflops and --bandwidth_gbs give them" in text
    assert "roofline  " not in text and "of the peak" not in text
    assert len(plot.draw(content, tmp_path / "plot.png").axes) == 2


def test_two_files_side_by_side(measured, tmp_path, capsys):
    content = json.loads(json.dumps(measured[0]))
    content["task"]["mode"] = "pmap"
    content["train"]["step_seconds"]["median"] *= 2
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content))
    assert benchmark.main(["--difference", str(measured[1]), str(other)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[0] == "task.mode" and line.split()[1:] == ["jit", "pmap"] for line in lines)
    medians = [line.split()[-1] for line in lines if line.startswith("step, median")]
    assert medians == ["2.000", "1.000"]


def test_files_that_are_none(measured, tmp_path):
    (tmp_path / "other.json").write_text('{"format": "something"}')
    with pytest.raises(UserError, match="there is no such file"):
        report.read_measurement(tmp_path / "absent.json")
    with pytest.raises(UserError, match="not a measurement written by `benchmark --json`"):
        report.read_measurement(tmp_path / "other.json")
    train, inference = (
        {name: part for name, part in measured[0].items() if name != other} for other in ("inference", "train")
    )
    with pytest.raises(UserError, match="a and b: they have no kind of step in common"):
        report.format_difference(train, inference, ("a", "b"))


MISTAKES = {
    "nothing to measure": ([], r"give either --model=NAME or --config=FILE.py"),
    "two things": (["--model=inception_v1", "--config=configs/digits.py"], r"give either --model=NAME or --config"),
    "unknown model": (["--model=inception_v5"], r"unknown model 'inception_v5'; did you mean"),
    "unknown option": (["--model=inception_v1", "--set", "modul=naive"], r"unknown option 'modul'.*'module'"),
    "no option": (["--model=inception_v1", "--set", "module"], r"is not OPTION=VALUE"),
    "one block": (["--model=inception_v1", "--blocks=1"], r"--blocks=1 --seconds=10: must be at least 2 blocks"),
    "small images": (["--model=inception_v1", "--image_size=16"], r"needs at least 32"),
    "a peak in words": (
        ["--model=inception_v1", "--image_size=32", "--batch_size=8", "--peak_tflops=fast"],
        r"--peak_tflops='fast': must be a number above 0, or 'measure'",
    ),
    "options of a recipe": (["--config=configs/digits.py", "--set", "module=naive"], r"go with --model"),
    "a framework that is none": (["--model=inception_v1", "--vs=torch,onxruntime"], r"did you mean 'onnxruntime'"),
    "a flag of torch without it": (
        ["--model=inception_v1", "--vs=onnxruntime", "--torch_python=p"],
        r"has an effect only with --vs=torch",
    ),
    "torch of a recipe": (["--config=configs/digits.py", "--vs=torch"], r"--vs=torch goes with --model"),
    "a flag that torch has not": (
        ["--model=inception_v1", "--vs=torch", "--mode=pmap"],
        r"--mode: has no effect with --vs",
    ),
    "a block of parts of a call": (
        ["--model=inception_v1", "--vs=torch", "--steps_per_execution=8", "--steps=12"],
        r"a block has a multiple of the steps of a call; --steps=16 would do",
    ),
    "steps of a program that is not run": (
        ["--model=inception_v1", "--topology=h200", "--steps_per_execution=8"],
        "has no effect with --topology",
    ),
    "steps of inference": (
        ["--model=inception_v1", "--what=inference", "--steps_per_execution=8"],
        "has no effect with --what=inference",
    ),
    "a flag of torch alone": (["--model=inception_v1", "--rounds=3"], r"--rounds: has an effect only with --vs=torch"),
    "steps of the input": (
        ["--config=configs/digits.py", "--data", "--vs=grain", "--steps=3"],
        r"--steps: has no effect with --data --vs",
    ),
    "a library without an input": (
        ["--config=configs/digits.py", "--data", "--vs=keras"],
        r"--vs: unknown 'keras'; with --data allowed: torch, grain, tf_data",
    ),
    "an interpreter of no side": (
        ["--config=configs/digits.py", "--data", "--vs=grain", "--tf_python=p"],
        r"--tf_python has an effect only with --vs=tf_data",
    ),
    "tf_python of a step": (
        ["--model=inception_v1", "--vs=torch", "--tf_python=p"],
        r"--tf_python: has no effect with",
    ),
    "an augmentation of ours alone": (
        ["--config=configs/digits.py", "--data", "--vs=grain", "--config.augmentation.policy=randaugment"],
        r"config.augmentation.policy = 'randaugment': the other libraries do not .*: --config.augmentation.policy=none",
    ),
    "data of no files": (
        ["--config=configs/digits.py", "--data", "--vs=grain"],
        r"digits: the other libraries read image files on this machine: --config.data.name=folder:PATH",
    ),
    "a plot of the input": (["--model=inception_v1", "--data", "--plot=a.png"], r"--plot: has no effect with --data"),
    "two things to do": (
        ["--model=inception_v1", "--data", "--largest_batch"],
        r"--largest_batch: has no effect with --data",
    ),
    "a batch to begin with": (
        ["--model=inception_v1", "--largest_batch", "--batch_size=8"],
        r"--batch_size: has no effect with --largest_batch",
    ),
    "a difference kept": (["--difference", "a", "b", "--json=c"], r"--json: has no effect with --difference"),
    "unknown flag": (["--image_siz=64"], r"unknown argument '--image_siz'; did you mean '--image_size'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistake, monkeypatch, capsys):
    arguments, message = MISTAKES[mistake]
    monkeypatch.setattr("sys.argv", ["benchmark", *arguments])
    with pytest.raises(SystemExit) as stop:
        command_line.run(benchmark.main)
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert re.search(message, captured.err), captured.err


def test_the_input_alone(capsys, tmp_path):
    arguments = ["--config=configs/digits.py", "--data", "--seconds=0.3", f"--json={tmp_path / 'data.json'}"]
    assert benchmark.main([*arguments, "--devices=1"]) == 0
    assert re.search(
        r"images/s of digits with \d+ threads on \d+ cores, [\d,.]+ per CPU-second", capsys.readouterr().out
    )
    content = json.loads((tmp_path / "data.json").read_text())
    assert content["input"]["images_per_second"] > 0 and content["input"]["dataset"] == "digits"
    assert content["input"]["images_per_cpu_second"] > 0


def test_out_of_memory_is_one_clear_line():
    import jax

    from inception_jax.benchmarks import workload

    recipe = workload.config_of_model("inception_v1", 10)
    workload.set_fields(recipe, {"data.image_size": 32, "parallel.devices": 1, "batch_size": 4})
    with pytest.raises(
        workload.OutOfMemory, match=r"inception_v1 at 32 pixels in float32 .* 4 examples .*with --largest_batch"
    ):
        with workload.translate_out_of_memory(workload.build_setup(recipe)):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 99 bytes.")
    full = "RESOURCE_EXHAUSTED: tempfile-55f9; No space left on device"
    with pytest.raises(DiskFull, match=r"tempfile-55f9; No space left on device; free some space, .* TMPDIR"):
        with workload.translate_out_of_memory(workload.build_setup(recipe)):
            raise jax.errors.JaxRuntimeError(full)
    assert not results_table.is_out_of_memory(jax.errors.JaxRuntimeError(full))  # a smaller batch would not help
    with pytest.raises(jax.errors.JaxRuntimeError):  # another fault stays what it is
        with workload.translate_out_of_memory(workload.build_setup(recipe)):
            raise jax.errors.JaxRuntimeError("INTERNAL: something else")


@pytest.mark.slow  # about 12 compilations
def test_the_largest_batch(monkeypatch, capsys):
    """Real compilations, a made-up machine: what the compiler plans for the state and a few images fits, no more."""
    from inception_jax.benchmarks import memory

    monkeypatch.setattr(memory, "memory_limit", lambda device: 9 * 2**20)
    arguments = ["--model=inception_v1", "--set", "width_multiplier=0.0625", "--set", "min_width=4", "--num_classes=10"]
    assert benchmark.main([*arguments, "--image_size=32", "--devices=1", "--largest_batch"]) == 0
    captured = capsys.readouterr()
    found = int(re.search(r"^([\d,]+) is the largest batch that fits", captured.out, re.M)[1].replace(",", ""))
    fits = [int(n.replace(",", "")) for n in re.findall(r"batch ([\d,]+): fits", captured.err)]
    refused = [int(n.replace(",", "")) for n in re.findall(r"batch ([\d,]+): .* planned, .*: no", captured.err)]
    assert found == max(fits) < min(refused)


def test_a_network_that_a_recipe_registers(own_recipe, registrations, tmp_path, capsys):
    arguments = ["--what=inference", "--seconds=0.1", "--blocks=2", "--no_compile_times", "--config.parallel.devices=1"]
    output = tmp_path / "own.json"
    limits = ["--peak_tflops=1", "--bandwidth_gbs=10"]
    assert benchmark.main([f"--config={own_recipe}", *arguments, *limits, f"--json={output}"]) == 0
    found = json.loads(output.read_text())
    assert found["task"]["model"] == "strider" and found["task"]["options"] == {"features": 4}
    assert found["inference"]["flops"]["per_image"] == 2 * (36 * 27 * 4 + 8)
    assert [bound["block"] for bound in found["inference"]["roofline"]["blocks"]] == ["conv1", "classifier"]
    ratio = found["inference"]["flops"]["compiler_over_inside"]
    said = "strider: the compiler counts" in capsys.readouterr().err
    assert ratio > 0 and said == (abs(ratio - 1) > roofline.TOLERANCE)
    with pytest.raises(ModelError, match=r"unknown model 'strideer'.*registers needs the recipe: --config=RECIPE.py"):
        benchmark.main(["--model=strideer"])
