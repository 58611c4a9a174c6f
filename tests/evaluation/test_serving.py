"""Requests of a few images, from several threads: few programs serve all of them, and each is compiled once."""

import concurrent.futures
import copy
import pickle

import jax
import numpy as np
import pytest

from inception_jax import config
from inception_jax.errors import UserError
from inception_jax.evaluation import trained_network
from inception_jax.evaluation.prediction import Prediction
from inception_jax.features.explanation import explain
from inception_jax.models.initialization import init_variables
from inception_jax.training import network_setup
from inception_jax.training.compilation import Programs
from inception_jax.training.parallel import Devices

SIDE, CLASSES = 32, 7
IMAGES = np.random.default_rng(0).integers(0, 256, (12, SIDE, SIDE, 3), np.uint8)


@pytest.fixture(scope="module")
def recipe():
    recipe = config.default()
    recipe.data.image_size, recipe.model.width_multiplier, recipe.model.aux_heads = SIDE, 0.1, False
    return recipe


@pytest.fixture
def network(recipe):
    recipe.parallel.devices = 1
    return build(recipe)


def build(recipe):
    model = network_setup.build_model(config.Config(recipe), CLASSES)
    variables = init_variables(model, jax.random.key(0), SIDE)
    names = [f"class {k}" for k in range(CLASSES)]
    return trained_network.build(recipe, variables, names, weights="raw", step=0, where="a test")


@pytest.fixture
def compiled(monkeypatch):
    """Rows of the programs that are compiled, in turn."""
    rows, compile_eval = [], Devices.compile_eval

    def note(self, step, variables, batch, **options):
        rows.append(len(batch["image"]))
        return compile_eval(self, step, variables, batch, **options)

    monkeypatch.setattr(Devices, "compile_eval", note)
    return rows


def test_the_rows_are_powers_of_two_up_to_the_batch_size():
    def rows(count, devices, batch_size):
        counted = Devices.__new__(Devices)
        counted.count = devices
        return counted.choose_rows(count, batch_size)

    assert [rows(count, 1, 12) for count in (0, 1, 2, 3, 4, 5, 8, 9, 12, 40)] == [1, 1, 2, 4, 4, 8, 8, 12, 12, 12]
    assert [rows(count, 3, 32) for count in (1, 3, 4, 7, 13, 25, 40)] == [3, 3, 6, 12, 24, 33, 33]


def test_threads_compile_each_program_once_and_get_the_numbers_of_one_request(network, compiled):
    """Of 1 to 8 images, and of 1 to 5 classes; whatever is beside an image changes no bit of it."""
    sizes = [1 + k % 8 for k in range(40)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: network.predict(IMAGES[:n], top_k=1 + n % 5, batch_size=8), sizes))
    assert sorted(compiled) == [1, 2, 4, 8]
    whole = network.predict(IMAGES, batch_size=8)
    for n, one in zip(sizes, found, strict=True):
        assert one["classes"].shape == one["probabilities"].shape == (n, 1 + n % 5)
        np.testing.assert_array_equal(one["classes"], whole["classes"][:n, : 1 + n % 5])
        np.testing.assert_allclose(one["probabilities"], whole["probabilities"][:n, : 1 + n % 5], rtol=1e-6)
    for one in found[4:8]:  # the same program
        np.testing.assert_array_equal(one["probabilities"][:, :1], whole["probabilities"][: len(one["classes"]), :1])
    assert sorted(compiled) == [1, 2, 4, 8]


def test_features_and_saliency_maps_do_so_too(network, compiled):
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: network.features(IMAGES[:n], batch_size=8), (3, 4, 3, 5, 7, 8)))
    assert sorted(compiled) == [4, 8]
    (name,) = found[0]
    assert [len(one[name]) for one in found] == [3, 4, 3, 5, 7, 8]
    np.testing.assert_array_equal(found[3][name], found[5][name][:5])
    compiled.clear()
    given = [Prediction("a", ("b",), np.zeros(1, np.int32), np.ones(1), image=image) for image in IMAGES]
    assert [len(list(explain(network, given[:n], batch_size=8))) for n in (3, 4, 3)] == [3, 4, 3] and compiled == [4]


def test_settings_of_the_program_around_it(network, recipe):
    """`jax.set_mesh` makes arrays and programs of a whole process explicitly sharded; ours have a mesh of their own."""
    expected, features = network.predict(IMAGES[:2]), network.features(IMAGES[:2], ["global_pool"])
    with jax.set_mesh(jax.make_mesh((2,), ("data",))):
        inside = build(recipe)
        found, found_features = inside.predict(IMAGES[:2]), inside.features(IMAGES[:2], ["global_pool"])
        assert not jax.sharding.get_abstract_mesh().empty
    with jax.disable_jit(), pytest.raises(UserError, match="jax_disable_jit is on, and steps are compiled"):
        network.predict(IMAGES[:2])  # whose program is there
    np.testing.assert_array_equal(found["probabilities"], expected["probabilities"])
    np.testing.assert_array_equal(found_features["global_pool"], features["global_pool"])


def test_several_devices_serve_several_threads(recipe, compiled):
    recipe.parallel.devices = 2
    network = build(recipe)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: network.predict(IMAGES[:n], batch_size=8), [1 + k % 5 for k in range(40)]))
    assert sorted(compiled) == [2, 4, 8] and [len(one["classes"]) for one in found[:5]] == [1, 2, 3, 4, 5]


def test_an_error_of_a_compilation_is_not_kept():
    programs = Programs()
    with pytest.raises(ZeroDivisionError):
        programs.get("a", lambda: 1 // 0)
    assert programs.get("a", lambda: 2) == programs.get("a", lambda: 3) == 2


def test_a_copy_of_programs_begins_anew():
    programs = Programs()
    programs.get("a", lambda: 1)
    for other in (copy.deepcopy(programs), pickle.loads(pickle.dumps(programs))):
        assert other.get("a", lambda: 2) == 2 and programs.get("a", lambda: 3) == 1
