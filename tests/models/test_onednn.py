"""Convolutions by oneDNN: their numbers and transforms, how they are built, and a run that goes on with them."""

import functools
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec

from inception_jax import create_model
from inception_jax.evaluation import trained_network
from inception_jax.exports.stablehlo import export_stablehlo
from inception_jax.models import onednn, onednn_library
from inception_jax.models.checks import ModelError
from inception_jax.models.convolution import conv2d
from inception_jax.models.platforms import TRACED_FOR

from .test_convolution import CASES, operands, with_gradients, xla

ROOT = Path(__file__).resolve().parents[2]

try:
    onednn.load()
    MISSING = ""
except ModelError as error:
    MISSING = str(error)
needs_onednn = pytest.mark.skipif(bool(MISSING), reason=MISSING)
needs_bfloat16 = pytest.mark.skipif(
    bool(MISSING) or not onednn.load().bfloat16, reason=MISSING or "the processor has no products of bfloat16"
)
DTYPES = pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=needs_bfloat16)])


def ours(x, kernel, strides=1, padding="SAME"):
    return conv2d(x, kernel, strides, padding, algorithm="onednn")


def calls(function, *arguments):
    return jax.jit(function).lower(*arguments).as_text().count(f"@{onednn.TARGET}(")


SHAPES = pytest.mark.parametrize(
    "images, window, strides, padding",
    [
        *CASES.values(),
        ((8, 28, 28, 64), (3, 3, 64, 96), 1, "SAME"),  # its kernel has a layout of oneDNN's own
        ((17, 9, 9, 32), (1, 1, 32, 16), 1, "SAME"),  # a number of images that no number of parts divides
        ((1, 9, 9, 32), (3, 1, 32, 16), 1, "VALID"),
        ((3, 14, 14, 192), (3, 3, 192, 208), 1, "SAME"),  # reorders of its kernel are divided
        ((2, 7, 7, 256), (3, 3, 256, 130), 1, "SAME"),
        ((2, 3, 3, 16), (1, 1, 16, 16), 2, ((1, 1), (1, 1))),  # as many pixels behind as before, but others
        # Equal sizes, other padding.
        *(((2, 8, 8, 4), (3, 3, 4, 4), 1, ((low, 2 - low), (1, 1))) for low in (0, 1, 2)),
        *(((2, 8, 8, 4), (3, 3, 4, 4), 1, ((1, 1), (low, 2 - low))) for low in (0, 2)),
    ],
)


@needs_onednn
@SHAPES
def test_equal_to_xlas_own(images, window, strides, padding):
    x, kernel = operands(images, window, np.float32)
    got = with_gradients(ours, x, kernel, strides, padding)
    want = with_gradients(xla, x.astype(jnp.float32), kernel, strides, padding)
    for one, other in zip(got, want, strict=True):
        assert one.dtype == jnp.float32
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-5 * np.abs(other).max())
    assert calls(lambda x, kernel: with_gradients(ours, x, kernel, strides, padding), x, kernel) == 3


@needs_bfloat16
@SHAPES
def test_bfloat16_is_summed_in_float32_and_rounded_once(images, window, strides, padding):
    x, kernel = operands(images, window, jnp.bfloat16)
    y, towards = jax.vjp(lambda x, kernel: ours(x, kernel, strides, padding), x, kernel)
    gradient = jax.random.normal(jax.random.key(2), y.shape, jnp.bfloat16)
    wide, towards_wide = jax.vjp(
        lambda *wide: xla(*wide, strides, padding), *(v.astype(np.float32) for v in (x, kernel))
    )
    got, want = (y, *towards(gradient)), (wide, *towards_wide(gradient.astype(np.float32)))
    for one, other in zip(got, want, strict=True):
        assert one.dtype == jnp.bfloat16
        one = np.asarray(one, np.float32)
        np.testing.assert_allclose(one, other, rtol=2**-8, atol=1e-5 * np.abs(other).max())
    text = jax.jit(jax.vjp, static_argnums=0).lower(lambda *a: ours(*a, strides, padding), x, kernel).as_text()
    assert text.count(f"@{onednn.TARGET}(") == 1 and "f32" not in text


@needs_bfloat16
@SHAPES
def test_a_float32_kernel_beside_bfloat16_is_rounded_by_onednn(images, window, strides, padding):
    """The same bits as of a rounded kernel; its gradient is not rounded, and the program converts nothing."""
    x, kernel = operands(images, window, jnp.bfloat16)
    kernel = jax.random.normal(jax.random.key(3), kernel.shape)
    rounded = kernel.astype(jnp.bfloat16)
    y, towards = jax.vjp(lambda x, kernel: ours(x, kernel, strides, padding), x, kernel)
    gradient = jax.random.normal(jax.random.key(2), y.shape, jnp.bfloat16)
    of_rounded, towards_of_rounded = jax.vjp(lambda x, kernel: ours(x, kernel, strides, padding), x, rounded)
    of_input, of_kernel = towards(gradient)
    same_of_input, of_kernel_rounded = towards_of_rounded(gradient)
    np.testing.assert_array_equal(y, of_rounded)
    np.testing.assert_array_equal(of_input, same_of_input)
    assert of_kernel.dtype == jnp.float32
    np.testing.assert_array_equal(of_kernel.astype(jnp.bfloat16), of_kernel_rounded)
    wide = [v.astype(jnp.float32) for v in (x, rounded)]
    (want,) = jax.vjp(lambda kernel: xla(wide[0], kernel, strides, padding), wide[1])[1](gradient.astype(jnp.float32))
    np.testing.assert_allclose(of_kernel, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
    text = jax.jit(lambda x, kernel: jax.vjp(lambda *a: ours(*a, strides, padding), x, kernel)[1](gradient))
    text = text.lower(x, kernel).as_text()
    assert text.count(f"@{onednn.TARGET}(") == 2 and "stablehlo.convert" not in text


@needs_onednn
def test_a_float32_kernel_beside_16_bits_elsewhere_is_rounded_before(monkeypatch):
    """On a processor without products of bfloat16, and in what other platforms take of a program for all of them."""
    x, kernel = operands((2, 16, 16, 3), (7, 7, 3, 32), jnp.bfloat16)
    kernel = jax.random.normal(jax.random.key(3), kernel.shape)
    with TRACED_FOR(None):
        traced = jax.jit(jax.grad(lambda kernel: ours(x, kernel, 2).astype(jnp.float32).sum())).trace(kernel)
        for platform in ("tpu", "cuda"):
            lines = traced.lower(lowering_platforms=(platform,)).as_text().splitlines()
            lines = [line for line in lines if "stablehlo.convolution" in line]
            assert lines and all("f32" not in line for line in lines)
    monkeypatch.setattr(onednn, "load", lambda: onednn.Calls("", False, lambda *_: 0))
    for dtype in (jnp.bfloat16, jnp.float16):
        got, want = (
            jax.vjp(functools.partial(ours, x.astype(dtype)), one)[0] for one in (kernel, kernel.astype(dtype))
        )
        np.testing.assert_array_equal(got, want)


@needs_bfloat16
def test_bfloat16_is_never_filtered():
    x, kernel = operands((4, 28, 28, 64), (3, 3, 64, 96), jnp.bfloat16)
    assert onednn.takes_winograd((1, 1), kernel.shape, (4, 28, 28, 96))
    gradient = jnp.ones((4, 28, 28, 96), jnp.bfloat16)

    def run(x, kernel, name):
        y, towards = jax.vjp(functools.partial(conv2d, algorithm=name), x, kernel)
        return y, *towards(gradient)

    own, filtered = (jax.jit(run, static_argnums=2)(x, kernel, name) for name in ("onednn", "onednn_winograd"))
    jax.tree.map(np.testing.assert_array_equal, own, filtered)


@needs_onednn
@DTYPES
def test_every_number_of_images(dtype):
    """The last part of a batch may have fewer images, for which oneDNN takes another layout of the kernel."""
    rtol, atol = (1e-4, 1e-5) if dtype == jnp.float32 else (2**-7, 1e-5)  # XLA's are rounded to bfloat16, too
    # In bfloat16 the last one's kernel gradient is oneDNN's, those of the others are products.
    for shape, window in (((7, 7, 32), (5, 5, 32, 128)), ((7, 7, 208), (1, 1, 208, 64)), ((7, 7, 32), (5, 5, 32, 120))):
        for count in (1, 2, 3, 5, 7, 9, 17, 33, 65):  # with 1 to 16 threads one of them leaves one image
            x, kernel = operands((count, *shape), window, dtype)
            gradient = jax.random.normal(jax.random.key(1), (count, *shape[:2], window[3]), dtype)
            got, want = (
                jax.jit(lambda *a, function=function: jax.vjp(function, *a[:2])[1](a[2]))(x, kernel, gradient)
                for function in (ours, functools.partial(xla, strides=1, padding="SAME"))
            )
            for one, other in zip(got, want, strict=True):
                one, other = np.asarray(one, np.float32), np.asarray(other, np.float32)
                np.testing.assert_allclose(one, other, rtol=rtol, atol=atol * np.abs(other).max(), err_msg=f"{count}")


@needs_onednn
@pytest.mark.parametrize("variable", ["OMP_DYNAMIC=true", "OMP_THREAD_LIMIT=1"])
def test_fewer_images_than_threads(variable):
    """XLA's threads are 8, OpenMP's one: nothing is planned for threads that there are not."""
    name, value = variable.split("=")
    program = """import jax, jax.numpy as jnp
from inception_jax.models.convolution import conv2d
x, kernel = jax.random.normal(jax.random.key(0), (1, 14, 14, 64)), jnp.ones((3, 3, 64, 64))
gradient = lambda algorithm: jax.grad(lambda k: (conv2d(x, k, algorithm=algorithm) ** 2).sum())(kernel)
got, want = jax.jit(gradient, static_argnums=0)("onednn"), jax.jit(gradient, static_argnums=0)("exact")
assert jnp.abs(got - want).max() < 1e-4 * jnp.abs(want).max()
"""
    environment = os.environ | {name: value, "NPROC": "8", "XLA_FLAGS": ""}
    subprocess.run([sys.executable, "-c", program], env=environment, cwd=ROOT, check=True)


@needs_bfloat16
@pytest.mark.parametrize(
    ("images", "window", "strides"),
    [
        ((1, 9, 1, 3), (3, 3, 3, 16), 2),
        ((2, 9, 1, 24), (3, 3, 24, 40), 2),
        ((3, 1, 1, 3), (3, 3, 3, 16), 2),
        ((1, 9, 1, 3), (3, 3, 3, 16), 3),
        ((2, 9, 1, 20), (1, 7, 20, 8), 2),
        ((2, 2, 2, 20), (5, 5, 20, 8), 2),
    ],
)
def test_the_kernels_gradient_of_taps_over_padding_alone_is_zero(images, window, strides):
    """oneDNN's, in bfloat16 on maps of one column, has what was in its memory."""
    large = jnp.full((8, 9, 9, 40), 1e20)  # leaves numbers there
    jax.jit(jax.grad(lambda k: (ours(large, k) * 1e10).sum()))(jnp.ones((7, 7, 40, 24))).block_until_ready()
    x, kernel = operands(images, window, jnp.bfloat16)

    def run(function, x):
        y, pull = jax.vjp(lambda kernel: function(x, kernel, strides, "SAME"), kernel.astype(jnp.float32))
        return pull(jnp.ones_like(y))[0]

    got, want = jax.jit(functools.partial(run, ours))(x), run(xla, x.astype(jnp.float32))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


@needs_onednn
@pytest.mark.parametrize("threads", [3, 16])
def test_few_images_are_divided_by_rows(threads):
    """Forward and both gradients in parts of an image's rows; the kernel packed for the same parts."""
    program = """import jax, jax.numpy as jnp, numpy as np
from inception_jax.models.convolution import conv2d
from inception_jax.models.packed_kernels import PACKS_KERNELS
CASES = [
    (1, 14, (3, 3), 1, "SAME"), (3, 13, (3, 3), 2, "SAME"), (2, 17, (7, 1), 1, "SAME"), (1, 40, (5, 5), 3, 2),
    (1, 11, (3, 3), 1, ((0, 2), (2, 1))), (1, 8, (3, 3), 1, 6), (1, 9, (1, 7), 1, "VALID"), (4, 8, (1, 1), 1, "SAME"),
]
for dtype in DTYPES:
    wide = lambda x: x.astype(jnp.float32)
    for images, rows, taps, *window in CASES[: 8 if dtype == "float32" else 4]:
        x = jax.random.normal(jax.random.key(0), (images, rows, rows + 2, 32), dtype)
        kernel = wide(jax.random.normal(jax.random.key(1), (*taps, 32, 48), dtype))
        gradient = jax.random.normal(jax.random.key(2), conv2d(x, kernel, *window, algorithm="onednn").shape, dtype)
        def run(algorithm, convert, x, kernel, gradient):
            call = lambda x, kernel: conv2d(x, kernel, *window, algorithm=algorithm)
            y, pull = jax.vjp(call, convert(x), kernel)
            return y, *pull(convert(gradient))
        both = jax.jit(lambda *a: (run("onednn", lambda x: x, *a), run("exact", wide, *a)))
        ours, exact = both(x, kernel, gradient)
        for one, other in zip(ours, exact, strict=True):
            error = jnp.abs(wide(one) - other).max() / jnp.abs(other).max()
            assert error < (6e-6 if dtype == "float32" else 2**-7), (dtype, images, rows, taps, window, error)
        with PACKS_KERNELS(True):
            packed = jax.jit(lambda x, kernel: conv2d(x, kernel, *window, algorithm="onednn"))(x, kernel)
        np.testing.assert_array_equal(packed, ours[0])
"""
    dtypes = ["float32", "bfloat16"] if onednn.load().bfloat16 else ["float32"]
    environment = os.environ | {"NPROC": str(threads), "XLA_FLAGS": ""}
    subprocess.run(
        [sys.executable, "-c", program.replace("DTYPES", str(dtypes))], env=environment, cwd=ROOT, check=True
    )


@needs_onednn
def test_other_dtypes(monkeypatch):
    """float16, and bfloat16 on other processors, are computed in float32; float64, and no images, as by "fast"."""
    monkeypatch.setattr(onednn, "load", lambda: onednn.Calls("", False, lambda *_: 0))
    for dtype in (jnp.float16, jnp.bfloat16):
        x, kernel = operands((3, 8, 8, 8), (3, 3, 8, 4), dtype)
        want = xla(x.astype(jnp.float32), kernel.astype(jnp.float32), 1, "SAME")
        got = jax.jit(ours)(x, kernel)
        assert got.dtype == dtype and calls(ours, x, kernel) == 1
        assert "tensor<3x8x8x4xf32>" in jax.jit(ours).lower(x, kernel).as_text()
        np.testing.assert_allclose(np.asarray(got, np.float32), want, rtol=2**-8, atol=1e-5)
    assert calls(ours, jnp.zeros((0, 8, 8, 8)), jnp.zeros((3, 3, 8, 4))) == 0
    with jax.enable_x64(True):
        x, kernel = operands((3, 8, 8, 8), (3, 3, 8, 4))
        assert calls(ours, x, kernel) == 0
        np.testing.assert_array_equal(jax.jit(ours)(x, kernel), jax.jit(conv2d)(x, kernel))


@needs_onednn
def test_other_platforms_have_no_such_call():
    x, kernel = operands((2, 8, 8, 3), (3, 3, 3, 4), np.float32)
    with TRACED_FOR(None):
        text = jax.jit(ours).trace(x, kernel).lower(lowering_platforms=("tpu",)).as_text()
    assert onednn.TARGET not in text and "stablehlo.convolution" in text


BOTH = pytest.mark.parametrize("algorithm", ["onednn", "onednn_winograd"])


@needs_onednn
@BOTH
@pytest.mark.parametrize(
    ("images", "window", "stride"), [((3, 6, 5, 4), (3, 2, 4, 5), 2), ((2, 6, 5, 32), (3, 3, 32, 32), 1)]
)
def test_twice_differentiable(monkeypatch, algorithm, images, window, stride):
    monkeypatch.setattr(onednn, "_LEAST_TILES", 1)
    x, kernel = operands(images, window, np.float32)

    def penalty(function, x, kernel):
        inner = jax.grad(lambda x, kernel: (function(x, kernel, stride, "SAME") ** 3).mean(), (0, 1))
        return sum((part**2).sum() for part in inner(x, kernel))

    forms = (functools.partial(conv2d, algorithm=algorithm), xla)
    got, want = (jax.jit(jax.grad(lambda *a, f=f: penalty(f, *a), (0, 1)))(x, kernel) for f in forms)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * np.abs(other).max())


@needs_onednn
def test_inside_scan_vmap_shard_map_and_pmap():
    x, kernel = operands((4, 5, 5, 8), (3, 3, 8, 3), np.float32)

    def gradient(function, kernel, x):
        return jax.grad(lambda kernel: (function(x, kernel, 1, "SAME") ** 2).sum())(kernel)

    want = jax.jit(lambda kernel, x: gradient(xla, kernel, x))(kernel, x)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    specs = {"in_specs": (PartitionSpec(), PartitionSpec("data")), "out_specs": PartitionSpec()}
    halves = x.reshape(2, 2, *x.shape[1:])
    for name, got in {
        "scan": jax.jit(lambda kernel, x: lax.map(lambda part: gradient(ours, kernel, part), x).sum(0))(kernel, halves),
        "vmap": jax.jit(jax.vmap(lambda x: gradient(ours, kernel, x)))(halves).sum(0),
        "shard_map": jax.jit(
            jax.shard_map(lambda kernel, x: gradient(ours, kernel, x), mesh=mesh, check_vma=True, **specs)
        )(kernel, x),
        "pmap": jax.pmap(lambda x: gradient(ours, kernel, x), devices=jax.devices()[:2])(halves).sum(0),
    }.items():
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max(), err_msg=name)


@needs_onednn
@BOTH
def test_the_same_bits_again(algorithm):
    x, kernel = operands((16, 14, 14, 64), (3, 3, 64, 96), np.float32)
    conv = functools.partial(conv2d, algorithm=algorithm)
    step = jax.jit(lambda x, kernel: with_gradients(conv, x, kernel, 1, "SAME"))
    first = jax.device_get(step(x, kernel))
    for _ in range(20):
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(step(x, kernel)), first)


@needs_onednn
def test_a_networks_option_reaches_its_convolutions():
    model = create_model("alexnet", num_classes=2, width_multiplier=0.25)
    x = jax.random.normal(jax.random.key(1), (2, 67, 67, 3))
    variables = jax.jit(model.init)(jax.random.key(0), x)
    own = model.clone(convolution="onednn")
    want, got = (jax.jit(network.apply)(variables, x).logits for network in (model, own))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())
    assert calls(own.apply, variables, x) == 8 and calls(model.apply, variables, x) == 0  # three layers are two towers


@needs_onednn
def test_both_convolutions_of_separable_ones_are_calls():
    """Xception's: 2 in the stem, 4 in shortcuts, 34 depthwise ones and 34 behind them."""
    model = create_model("xception", width_multiplier=0.05, num_classes=2, convolution="onednn")
    images = jnp.zeros((1, 71, 71, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    assert calls(lambda variables: model.apply(variables, images).logits, variables) == 74


@needs_onednn
def test_an_exported_program_needs_no_library(tmp_path):
    model = create_model("alexnet", num_classes=2, width_multiplier=0.125, convolution="onednn")
    exported = export_stablehlo(model, None, 67, tmp_path / "program", batch=1, platforms=("cpu",))
    assert onednn.TARGET not in exported.mlir_module()


def refusal():
    with pytest.raises(ModelError) as raised:
        onednn_library.build()
    return str(raised.value)


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """The folder of a user who has built nothing yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "inception_jax" / "onednn"


def test_without_the_library_the_remedy_is_named(monkeypatch, fresh):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    assert "pip install 'inception_jax[onednn]'" in refusal()


@needs_onednn
def test_without_a_compiler_the_remedy_is_named(monkeypatch, fresh):
    for compiler, message in (
        ("no-such-compiler", "compiler 'no-such-compiler' does not start (No such file"),
        (f"{shutil.which('c++')} -no-such-flag", "no-such-flag"),
        (f"{shutil.which('c++')} -lnosuch", "cannot find -lnosuch"),
        ('g++ "', "CXX = 'g++ \"': No closing quotation"),
    ):
        monkeypatch.setenv("CXX", compiler)
        assert message in refusal() and "\n" not in refusal()
    assert list(fresh.iterdir()) == []
    monkeypatch.delenv("CXX")
    fresh.chmod(0o777)
    assert "chmod go-w" in refusal()
    fresh.rmdir()
    fresh.write_text("")
    assert str(fresh) in refusal()


@needs_onednn
def test_it_is_built_once_whatever_the_umask(fresh):
    before = os.umask(0o002)
    try:
        built = onednn_library.build()
        made = built.stat().st_mtime_ns
        assert onednn_library.build() == built and built.stat().st_mtime_ns == made
    finally:
        os.umask(before)


@needs_onednn
def test_what_is_no_library_is_an_error_with_a_remedy(monkeypatch, tmp_path):
    (tmp_path / "empty.so").touch()
    monkeypatch.setattr(onednn_library, "build", lambda: tmp_path / "empty.so")
    with pytest.raises(ModelError, match=r"cannot be loaded .*: remove it, or set XDG_CACHE_HOME"):
        onednn.load.__wrapped__()


@BOTH
def test_where_it_is_missing_a_run_is_evaluated_by_xla(monkeypatch, capsys, algorithm):
    def missing():
        raise ModelError("convolutions by oneDNN: oneDNN is not installed")

    monkeypatch.setattr(onednn, "load", missing)
    model = create_model("alexnet", num_classes=2, convolution=algorithm)
    assert trained_network._computable(model).convolution == "fast"
    assert "last digits may differ: convolutions by oneDNN: oneDNN is not" in capsys.readouterr().err


@needs_onednn
def test_what_others_could_have_written_is_not_loaded(fresh):
    built = onednn_library.build()
    content = built.read_bytes()
    built.unlink()
    built.write_bytes(b"not a library")
    built.chmod(0o666)
    assert onednn_library.build() == built
    assert built.read_bytes() == content and os.stat(built).st_mode & 0o022 == 0


@needs_onednn
def test_a_machine_without_cpus_as_its_devices_needs_no_library(monkeypatch):
    """A trace for every platform holds the CPUs' form, too: there it is that of "fast"."""
    monkeypatch.setattr(onednn, "load", lambda: pytest.fail("the library is asked for"))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    x, kernel = operands((2, 6, 8, 3), (3, 3, 3, 4), np.float32)
    with TRACED_FOR(None):
        assert onednn.TARGET not in str(jax.make_jaxpr(ours)(x, kernel))


@needs_onednn
def test_a_new_process_takes_the_stored_step(start_command, small_arguments, tmp_path):
    """The second run traces no step, so the calls are made known before its program is loaded; the same bits."""
    arguments = [*small_arguments, "--config.model.convolution=onednn"]
    stored, results = [], []
    for name in ("first", "second"):
        process = start_command(
            "train",
            *(*arguments, f"--workdir={tmp_path / name}"),
            environment={"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")},
        )
        _, err = process.communicate(timeout=400)
        assert process.returncode == 0, err
        # What cannot be loaded is replaced by an empty file.
        stored.append({file.name: file.stat().st_size for file in (tmp_path / "cache" / "executables").iterdir()})
        results.append(json.loads((tmp_path / name / "result.json").read_text()))
    assert stored[0] == stored[1] and stored[0]
    assert results[0]["fingerprint"] == results[1]["fingerprint"]
    # `evaluate` packs the kernels once for all batches, training packs them in every pass.
    process = start_command("evaluate", f"--workdir={tmp_path / 'second'}", "--devices=1", "--json")
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    means = results[1]["metrics"]["test[:40]"]["ema"]
    found = json.loads(out)
    assert {name: found[name] for name in means} == means
