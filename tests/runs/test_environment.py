"""What a start records of its environment, and what a later one may not change."""

import contextlib
import json

import jax
import pytest

from inception_jax.errors import UserError
from inception_jax.runs import environment, manifest


@pytest.fixture
def workdir(tmp_path):
    manifest.write(tmp_path, "{}", environment=environment.describe(), run_id="12")
    return tmp_path


@contextlib.contextmanager
def setting(name, value):
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        yield
    finally:
        jax.config.update(name, before)


def test_what_is_recorded(workdir, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", " --xla_a=1   --xla_b=2 ")
    monkeypatch.setenv("NPROC", "1")
    found = json.loads(json.dumps(environment.describe()))
    assert set(environment.DECIDING) <= found["settings"].keys()
    assert found["settings"]["jax_enable_x64"] is False and found["settings"]["jax_numpy_dtype_promotion"] == "strict"
    assert found["variables"]["XLA_FLAGS"] == "--xla_a=1 --xla_b=2" and found["variables"]["NPROC"] == "1"
    assert found["device"] == {"platform": "cpu", "kind": "cpu", "count": 8, "processes": 1, "version": "cpu"}
    assert found["cpu"]["count"] >= 1 and found["cpu"]["machine"]
    assert manifest.read(workdir)["environment"]["settings"] == found["settings"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("jax_enable_x64", True, "is True, .* began with False: .*; set JAX_ENABLE_X64=0, or choose"),
        ("jax_default_prng_impl", "rbg", "'rbg', .* 'threefry2x32': .*; set JAX_DEFAULT_PRNG_IMPL=threefry2x32"),
        ("jax_threefry_partitionable", False, "False, .* began with True: .*; set JAX_THREEFRY_PARTITIONABLE=1"),
        ("jax_random_seed_offset", 3, "3, .* began with 0: .*; set JAX_RANDOM_SEED_OFFSET=0"),
        ("jax_default_matmul_precision", "tensorfloat32", "began with None: .*; unset JAX_DEFAULT_MATMUL_PRECISION"),
    ],
)  # fmt: skip
def test_settings_that_decide_numbers_may_not_change(workdir, tmp_path_factory, name, value, message):
    older = tmp_path_factory.mktemp("older")
    manifest.write(older, "{}")
    environment.refuse_changed_settings(workdir)
    with setting(name, value):
        with pytest.raises(UserError, match=message) as caught:
            environment.refuse_changed_settings(workdir)
        assert len(environment.note_changed_settings(manifest.read(workdir))) == 1
        environment.refuse_changed_settings(older)  # it did not record them
        environment.refuse_changed_settings(workdir / "new")
    assert "\n" not in str(caught.value) and name.upper() in str(caught.value)


def test_what_may_change_the_last_bits_is_named(workdir, monkeypatch):
    before = manifest.read(workdir)
    assert environment.format_changes(before, before) == []
    now = json.loads(json.dumps(before))
    now["environment"]["variables"]["XLA_FLAGS"] = "--xla_dump_to=a --xla_cpu_enable_fast_math=true"
    now["environment"]["device"] |= {"kind": "NVIDIA H100", "count": 3}
    now["environment"]["settings"] |= {"jax_softmax_custom_jvp": "other", "jax_debug_nans": True}
    now["versions"]["jaxlib"] = "0.0.1"
    now["git"] = {"revision": "0123456789abcdef", "dirty": False}
    before["git"] = {"revision": "fedcba9876543210", "dirty": False}
    before["environment"]["variables"] = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    (line,) = environment.format_changes(before, now)
    for part in (
        f"jaxlib {jax.lib.__version__} -> 0.0.1",
        "revision fedcba9876 -> 0123456789",
        "XLA_FLAGS '' -> '--xla_cpu_enable_fast_math=true'",
        "device kind 'cpu' -> 'NVIDIA H100'",
        "device count 8 -> 3",
        "jax_softmax_custom_jvp",
    ):
        assert part in line
    assert "nans" not in line and "dump" not in line and "\n" not in line


@pytest.mark.parametrize(
    "content", [{}, {"environment": 3}, {"environment": {"settings": []}, "versions": 7, "git": 1}]
)
def test_an_older_or_damaged_manifest_is_not_compared(workdir, content):
    assert environment.format_changes(content, manifest.read(workdir)) == []
    assert [*environment.changed_settings(content)] == []
    assert not environment.rows(content).keys() - {*environment._VARIABLES}


def test_features_of_a_processor(tmp_path):
    (tmp_path / "x86").write_text("processor : 0\nflags\t\t: fpu sse2 avx2 avx512f fma\n\nflags\t\t: none\n")
    (tmp_path / "arm").write_text("processor : 0\nFeatures : fp asimd sve\n")
    assert environment._cpu_features(environment.processor_lines(tmp_path / "x86")) == ["avx2", "avx512f", "fma"]
    assert environment._cpu_features(environment.processor_lines(tmp_path / "arm")) == ["asimd", "sve"]
    assert environment._cpu_features(environment.processor_lines(tmp_path / "none")) == []


def test_the_manifest_records_what_a_start_has_changed(tmp_path):
    manifest.write(tmp_path, "{}")
    manifest.write(tmp_path, "{}", environment={"settings": {"jax_enable_x64": False}}, run_id="12")
    manifest.write(tmp_path, "{}", environment={"settings": {"jax_enable_x64": True}})
    found = manifest.read(tmp_path)
    changes = [start["changes"] for start in found["starts"]]
    assert changes == [{}, {}, {"environment.settings.jax_enable_x64": [False, True]}]
    assert found["run_id"] == "12" == manifest.read_run_id(tmp_path)
    (tmp_path / "manifest.json").write_text('{"run_id": 3}')
    with pytest.raises(UserError, match=r"manifest\.json is damaged: run_id = '3'"):
        manifest.read_run_id(tmp_path)
