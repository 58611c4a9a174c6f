"""What an import does with arrays that do not fit, with heads and backgrounds, and with every kind of number."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from inception_jax.errors import UserError
from inception_jax.models.checks import ModelError
from inception_jax.parity.seeded_weights import seeded_arrays
from inception_jax.pretrained import variants
from inception_jax.pretrained.exporting import export_weights
from inception_jax.pretrained.identification import identify
from inception_jax.pretrained.importing import import_variant, import_weights, variant_options
from inception_jax.pretrained.publishers import registry
from inception_jax.pretrained.variants import SourceArray

MODEL, SOURCE = "inception_v1_bn", "torchvision"
NARROW = {"width_multiplier": 0.05, "min_width": 4}
STEM, CLASSIFIER, VARIANCE = "conv1.conv.weight", "fc.weight", "conv1.bn.running_var"


@pytest.fixture
def arrays():
    """torchvision's GoogLeNet with its heads, at a twentieth of its width, with 1001 classes."""
    variant = registry.get_variant(MODEL, SOURCE)
    return seeded_arrays(variant, aux_heads=True, dtype=np.float32, num_classes=1001, **NARROW)


def imported(arrays, **options):
    """{path: leaf} of the narrow network."""
    return flatten_dict(import_weights(MODEL, arrays, source=SOURCE, **NARROW, **options), sep="/")


def whole(source, model, **options):
    """A publisher's arrays at their published shapes, which take no memory: every value is zero."""
    variant = registry.get_variant(model, source)
    leaves = variant.leaves(aux_heads=True, **{"num_classes": variant.num_classes, **options})
    theirs = {path: (variant.source_array(path, shape), shape) for path, shape in leaves.items()}
    return {found.name: np.broadcast_to(np.float32(0), found.layout.shape(shape)) for found, shape in theirs.values()}


def refused(arrays, model=MODEL, source=SOURCE, **options):
    """The message with which an import fails."""
    with pytest.raises(UserError) as caught:
        import_weights(model, arrays, source=source, **options)
    return str(caught.value)


# --- Numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64, ">f4", np.longdouble])
def test_every_float_becomes_float32(arrays, dtype):
    given = {name: array.astype(dtype) for name, array in arrays.items()}
    # Something that float32 has no number for.
    given["fc.bias"] = given["fc.bias"] * given["fc.bias"].dtype.type(1 / 3)
    found = imported(given)
    assert {leaf.dtype for leaf in found.values()} == {np.dtype(np.float32)}
    assert all(leaf.flags.c_contiguous and leaf.dtype.isnative for leaf in found.values())
    expected = given[STEM].astype(np.float32).transpose(2, 3, 1, 0)
    assert (found["params/conv1/kernel"] == expected).all()
    assert (found["params/classifier/bias"] == given["fc.bias"].astype(np.float32)).all()


def test_float64_is_kept_where_it_is_asked_for(arrays):
    given = {name: array.astype(np.float64) / 3 for name, array in arrays.items()}
    found = imported(given, dtype=np.float64)
    assert (found["params/conv1/kernel"] == given[STEM].transpose(2, 3, 1, 0)).all()
    assert imported(given, dtype="bfloat16")["params/conv1/kernel"].dtype == ml_dtypes.bfloat16


def test_strides_do_not_matter_and_the_result_is_a_copy(arrays):
    expected = imported(arrays)
    for view in (
        lambda a: np.asfortranarray(a),
        lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
        lambda a: np.ascontiguousarray(a[::-1])[::-1],
    ):
        given = {name: view(array.copy()) for name, array in arrays.items()}
        assert not given[STEM].flags.c_contiguous
        for array in given.values():
            array.flags.writeable = False
        found = imported(given)
        assert all(found[path].tobytes() == leaf.tobytes() for path, leaf in expected.items())
    arrays["fc.bias"][:] = 7
    assert not (expected["params/classifier/bias"] == 7).any()


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint8, bool, np.complex64, object, "S4", "V4"])
def test_other_numbers_are_no_weights(arrays, dtype):
    arrays[STEM] = np.zeros(arrays[STEM].shape, dtype)
    assert refused(arrays, **NARROW) == (f"{STEM}: {np.dtype(dtype)} values; weights are floating-point numbers")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_what_is_not_finite_is_refused(arrays, value, dtype):
    arrays[CLASSIFIER] = arrays[CLASSIFIER].astype(dtype)
    arrays[CLASSIFIER][3, :2] = value
    size = arrays[CLASSIFIER].size
    assert refused(arrays, **NARROW) == f"{CLASSIFIER}: 2 of {size} values are not finite"


def test_a_variance_is_not_negative(arrays):
    arrays[VARIANCE][1] = -0.25
    assert refused(arrays, **NARROW) == f"{VARIANCE}: a running variance below 0 (-0.25)"
    arrays[VARIANCE][1] = 0  # of a channel that is dead
    assert imported(arrays)["batch_stats/conv1/bn/var"][1] == 0


def test_what_does_not_fit_into_float32_is_refused(arrays):
    arrays["fc.bias"] = arrays["fc.bias"].astype(np.float64)
    arrays["fc.bias"][0] = -1e39
    assert refused(arrays, **NARROW) == "fc.bias: values up to 1e+39 are too large for float32"
    assert imported(arrays, dtype=np.float64)["params/classifier/bias"][0] == -1e39
    arrays["fc.bias"][0] = 1e5
    assert "too large for float16" in refused(arrays, dtype=np.float16, **NARROW)


@pytest.mark.parametrize("dtype", [np.int32, "float31", bool, object])
def test_the_result_is_of_floats(arrays, dtype):
    assert refused(arrays, dtype=dtype, **NARROW).startswith("dtype = ")


# --- Names and shapes ------------------------------------------------------------------------------------------------


def test_a_half_renamed_file_names_what_is_missing_and_what_is_left_over():
    arrays = whole("timm", "inception_v3")
    renamed = {name.replace("Mixed_7c.branch_pool", "mixed_7c.branch_pool"): a for name, a in arrays.items()}
    message = refused(renamed, "inception_v3", "timm")
    assert message.startswith("these arrays are not timm's inception_v3: missing: Mixed_7c.branch_pool.conv.weight, ")
    assert "unexpected: mixed_7c.branch_pool.conv.weight, " in message
    assert "; did you mean 'Mixed_7c.branch_pool.conv.weight'?" in message
    # torchvision's arrays have the very same names, but that is no better.
    assert "They look like" not in message


def test_long_lists_are_cut(arrays):
    left = {f"extra.{i}": np.zeros(1, np.float32) for i in range(8)}
    message = refused({**arrays, **left}, **NARROW)
    assert "unexpected: extra.0, extra.1, extra.2, extra.3, extra.4 and 3 more" in message
    assert "missing" not in message
    message = refused({name: a for name, a in arrays.items() if not name.startswith("inception5b")}, **NARROW)
    assert "missing: inception5b.branch1.conv.weight, " in message and " and 25 more" in message
    assert "unexpected" not in message


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        (("timm", "inception_v4"), ("inception_v3", "timm")),
        (("timm", "inception_resnet_v2"), ("inception_resnet_v2", "cadene")),
        (("torchvision", "inception_v3"), ("inception_v1_bn", "torchvision")),
        (("pytorchcv", "xception"), ("xception", "timm")),
        (("facenet-pytorch", "inception_resnet_v1"), ("inception_resnet_v2", "timm")),
        (("torchvision", "inception_v3"), ("xception", "cadene")),  # whose classifier may also be called `fc`
    ],
)
def test_the_wrong_network_names_the_right_one(given, asked):
    message = refused(whole(*given), *asked)
    assert message.startswith(f"these arrays are not {asked[1]}'s {asked[0]}: ")
    assert message.endswith(f"They look like {given[0]}'s {given[1]} (100 % of the names and shapes fit)")


def test_whose_arrays_they_are():
    arrays = whole("cadene", "inception_resnet_v2")
    score, variant = identify(arrays)[0]
    assert (score, variant.source, variant.model) == (1, "cadene", "inception_resnet_v2")
    # A file without its classifier, and with half of its blocks renamed, is still more like one than like others.
    for name in list(arrays):
        if name.startswith("last_linear"):
            del arrays[name]
        elif name.startswith("repeat_1.1"):
            arrays["module." + name] = arrays.pop(name)
    score, variant = identify(arrays)[0]
    assert (variant.model, 0.4 < score < 0.8) == ("inception_resnet_v2", True)
    assert identify({"weights": np.zeros(3)}) == []
    # What is missing counts against it: a tenth of a file is not all of it.
    tenth = dict(list(whole("cadene", "inception_resnet_v2").items())[::10])
    assert all(score < 0.2 for score, _ in identify(tenth))
    # Names alone are not enough: nobody's arrays are all of one shape.
    assert identify({name: np.zeros(5) for name in whole("timm", "inception_v4")}) == []


def test_one_trace_finds_a_file_with_foreign_layers():
    """A fine-tuned file of Keras: the names of all variants are compared, the shapes of the likely ones alone."""
    arrays = {n: a for n, a in whole("keras", "inception_v3").items() if not n.startswith("predictions/")}
    arrays |= {"dense/kernel": np.zeros((2048, 256), np.float32), "dense_1/kernel": np.zeros((256, 5), np.float32)}
    variants._trace_leaves.cache_clear()
    (score, variant), *_ = identify(arrays)
    assert variants._trace_leaves.cache_info().misses == 1
    assert (variant.source, variant.model) == ("keras", "inception_v3") and 0.98 < score < 1
    message = refused(arrays, "inception_v3", "keras")
    assert message == (
        "these arrays are not keras's inception_v3: the classifier 'predictions/kernel' is missing, and dense/kernel, "
        "dense_1/kernel are not its own; num_classes=0 imports without a classifier (convert: --set=num_classes=0 and "
        "--ignore=PATTERN)"
    )
    assert variants._trace_leaves.cache_info().misses == 1


def test_a_missing_classifier(arrays):
    del arrays[CLASSIFIER]
    message = refused(arrays, **NARROW)
    assert message.startswith(
        "these arrays are not torchvision's inception_v1_bn: the classifier 'fc.weight' is missing"
    )


def test_a_classifier_that_is_no_layer(arrays):
    arrays[CLASSIFIER] = arrays[CLASSIFIER][None, None]
    shape = arrays[CLASSIFIER].shape
    assert refused(arrays, **NARROW) == f"fc.weight: shape {shape} is not a fully connected [out, in]"


def test_another_shape_names_both(arrays):
    arrays[STEM] = arrays[STEM][:, :, :5, :5]
    message = refused(arrays, **NARROW)
    assert f"wrong shapes: {STEM} is {arrays[STEM].shape}, expected {(*arrays[STEM].shape[:2], 7, 7)}" in message


def test_names_and_shapes_are_reported_together(arrays):
    """So that a user who fixes the names does not find the shapes afterwards."""
    arrays["fc.bia"] = arrays.pop("fc.bias")
    arrays[STEM] = arrays[STEM][:, :, :5, :5]
    message = refused(arrays, **NARROW)
    assert (
        "missing: fc.bias; unexpected: fc.bia; did you mean 'fc.bias'?; wrong shapes: conv1.conv.weight is" in message
    )


def test_no_arrays():
    assert refused({}) == "no arrays: torchvision's inception_v1_bn was expected"
    assert "no arrays" in refused({"conv1.bn.num_batches_tracked": np.int64(3)})


def test_counters_are_no_weights(arrays):
    expected = imported(arrays)
    counters = {
        name.replace("running_var", "num_batches_tracked"): np.int64(5) for name in arrays if "running_var" in name
    }
    found = imported({**arrays, **counters})
    assert len(counters) > 50 and found.keys() == expected.keys()


def test_unknown_publishers_and_networks(arrays):
    assert "unknown source 'tim'; did you mean 'timm'?" in refused(arrays, source="tim")
    message = refused(arrays, "inception_v4", "torchvision")
    assert (
        "torchvision has no inception_v4; networks of torchvision: inception_v1_bn, inception_v3; "
        "sources of inception_v4: " in message
    )
    with pytest.raises(ModelError, match="did you mean 'inception_v4'"):
        import_weights("inception_v5", arrays, source="timm")
    with pytest.raises(ModelError, match="unknown option 'width'"):
        import_weights(MODEL, arrays, source=SOURCE, width=0.5)


# --- Classes ---------------------------------------------------------------------------------------------------------


def test_the_background_is_dropped_from_every_classifier(arrays):
    kept, dropped = imported(arrays), imported(arrays, background="drop")
    assert kept["params/classifier/kernel"].shape[-1] == 1001
    for head in ("", "aux1/", "aux2/"):
        for leaf in ("kernel", "bias"):
            path = f"params/{head}classifier/{leaf}"
            assert (dropped[path] == kept[path][..., 1:]).all() and dropped[path].flags.c_contiguous
    others = [path for path in kept if "classifier" not in path]
    assert all((dropped[path] == kept[path]).all() for path in others)
    made = import_variant(registry.get_variant(MODEL, SOURCE), arrays, background="drop", **NARROW)
    assert made.background_dropped and made.num_classes == made.options["num_classes"] == 1000


def test_only_the_first_of_1001_is_a_background(arrays):
    arrays = {
        name: a[:1000] if name.startswith(("fc", "aux")) and a.shape[0] == 1001 else a for name, a in arrays.items()
    }
    assert refused(arrays, background="drop", **NARROW) == (
        "background = 'drop': 1000 classes; only weights of 1001 classes have a background class"
    )
    assert refused(arrays, background="yes", **NARROW) == "background = 'yes': 'keep' or 'drop'"


def test_the_number_of_classes_may_be_said_and_must_be_right(arrays):
    assert imported(arrays, num_classes=1001)["params/classifier/bias"].shape == (1001,)
    assert imported(arrays, num_classes=1000, background="drop")["params/classifier/bias"].shape == (1000,)
    assert refused(arrays, num_classes=1000, **NARROW) == "num_classes = 1000: the classifier 'fc.weight' gives 1001"
    assert "gives 1000" in refused(arrays, num_classes=1001, background="drop", **NARROW)


# --- Auxiliary heads -------------------------------------------------------------------------------------------------


def test_heads_are_there_if_the_arrays_have_them(arrays):
    assert "params/aux2/fc/kernel" in imported(arrays)
    without = {name: array for name, array in arrays.items() if not name.startswith("aux")}
    assert not any("aux" in path for path in imported(without))
    half = {name: array for name, array in arrays.items() if not name.startswith("aux2")}
    assert "missing: aux2.conv.conv.weight, " in refused(half, **NARROW)
    message = refused(without, aux_heads=True, **NARROW)
    assert "missing: aux1.conv.conv.weight, " in message


def test_heads_can_be_skipped(arrays):
    without = {name: array for name, array in arrays.items() if not name.startswith("aux")}
    expected = imported(without)
    found = imported(arrays, aux_heads=False)
    assert found.keys() == expected.keys() and all((found[path] == expected[path]).all() for path in found)
    # But nothing else is.
    assert "unexpected: aux3.fc1.bias" in refused({**arrays, "aux3.fc1.bias": np.ones(3)}, aux_heads=False, **NARROW)


def test_a_publisher_without_heads():
    variant = registry.get_variant("inception_v4", "timm")
    arrays = seeded_arrays(variant, aux_heads=True, dtype=np.float32, num_classes=2, **NARROW)
    assert "aux" not in import_weights("inception_v4", arrays, source="timm", aux_heads=False, **NARROW)["params"]
    message = refused(arrays, "inception_v4", "timm", aux_heads=True, **NARROW)
    assert message == "aux_heads = True: timm's inception_v4 has no auxiliary heads"
    assert variant_options("inception_v4", "timm")["aux_heads"] is False
    assert "aux_heads" not in variant_options("inception_v3", "timm")


# --- What a file may lack --------------------------------------------------------------------------------------------


def test_an_optional_array_takes_its_default(arrays):
    variant = registry.get_variant(MODEL, SOURCE)

    def without_scale(path, shape):
        found = variant.source_array(path, shape)
        return SourceArray(found.name, found.layout, path == "params/conv1/bn/scale", 0.5)

    optional = dataclasses.replace(variant, source_array=without_scale)
    assert import_variant(optional, arrays, **NARROW).defaulted == ()
    scale = arrays.pop("conv1.bn.weight")
    made = import_variant(optional, arrays, **NARROW)
    assert made.defaulted == ("params/conv1/bn/scale",)
    found = made.variables["params"]["conv1"]["bn"]["scale"]
    assert found.shape == scale.shape and found.dtype == np.float32 and (found == 0.5).all()


# --- Export ----------------------------------------------------------------------------------------------------------


def test_export_refuses_what_is_not_the_form(arrays):
    variables = import_weights(MODEL, arrays, source=SOURCE, **NARROW)

    def message(variables, **options):
        with pytest.raises(UserError) as caught:
            export_weights(MODEL, variables, source=SOURCE, **options)
        return str(caught.value)

    assert "variables: params/conv1/kernel is " in message(variables)  # the width was not said
    assert message(variables, num_classes=10, **NARROW) == "num_classes = 10: the variables have 1001"
    assert message(variables, aux_heads=False, **NARROW) == "aux_heads = False: the variables have True"
    params = dict(variables["params"])
    del params["inception_3a"]
    assert "variant has params/inception_3a/conv_1x1/kernel" in message({**variables, "params": params}, **NARROW)
    params = {**variables["params"], "more": {"kernel": np.zeros(1)}}
    assert "the variables have params/more/kernel" in message({**variables, "params": params}, **NARROW)
    params = {**variables["params"], "conv1": {**variables["params"]["conv1"], "kernel": np.zeros((3, 3))}}
    assert "params/conv1/kernel is (3, 3), " in message({**variables, "params": params}, **NARROW)
    del params["classifier"]
    assert "no params/classifier/kernel" in message({**variables, "params": params}, **NARROW)


def test_export_keeps_dtypes(arrays):
    variables = import_weights(MODEL, arrays, source=SOURCE, dtype=ml_dtypes.bfloat16, **NARROW)
    exported = export_weights(MODEL, variables, source=SOURCE, **NARROW)
    assert {array.dtype for array in exported.values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert exported[STEM].tobytes() == arrays[STEM].astype(ml_dtypes.bfloat16).tobytes()


# --- Without a classifier --------------------------------------------------------------------------------------------


def without_top(arrays):
    return {name: array for name, array in arrays.items() if not name.startswith("predictions/")}


@pytest.fixture(scope="module")
def keras_arrays():
    return seeded_arrays(registry.get_variant("xception", "keras"), aux_heads=False, dtype=np.float32, **NARROW)


def test_a_file_without_a_classifier_gives_the_trunk(keras_arrays):
    """Keras's "no-top" files: asked for by num_classes=0, and never taken for a whole one."""
    trunk = import_weights("xception", without_top(keras_arrays), source="keras", num_classes=0, **NARROW)
    found, whole_one = (
        flatten_dict(tree, sep="/")
        for tree in (trunk, import_weights("xception", keras_arrays, source="keras", **NARROW))
    )
    assert set(whole_one) - set(found) == {"params/classifier/kernel", "params/classifier/bias"}
    assert all((found[path] == whole_one[path]).all() for path in found)
    back = export_weights("xception", trunk, source="keras", num_classes=0, **NARROW)
    assert back.keys() == without_top(keras_arrays).keys()
    assert all((back[name] == keras_arrays[name]).all() for name in back)


def test_a_classifier_that_is_not_wanted_is_skipped(keras_arrays, arrays):
    found = import_weights("xception", keras_arrays, source="keras", num_classes=0, **NARROW)
    assert "classifier" not in found["params"]
    found = import_weights(MODEL, arrays, source=SOURCE, num_classes=0, **NARROW)  # with the heads' classifiers
    assert not {"classifier", "aux1", "aux2"} & found["params"].keys()


def test_what_does_not_go_without_a_classifier(keras_arrays, arrays):
    message = refused(without_top(keras_arrays), "xception", "keras", **NARROW)
    assert "the classifier 'predictions/kernel' is missing; num_classes=0 imports without a classifier (" in message
    assert "without classes there are no auxiliary heads" in refused(arrays, num_classes=0, aux_heads=True, **NARROW)
    assert "without a classifier there is no background class" in refused(
        arrays, num_classes=0, background="drop", **NARROW
    )
    arrays = without_top(keras_arrays) | {"predictions_1/kernel": np.zeros((3, 3), np.float32)}
    message = refused(arrays, "xception", "keras", num_classes=0, **NARROW)
    assert "unexpected: predictions_1/kernel; leave them out (convert: --ignore=PATTERN)" in message
    kept = without_top(keras_arrays)
    del kept["block1_conv1/kernel"]
    assert "missing: block1_conv1/kernel" in refused(kept, "xception", "keras", num_classes=0, **NARROW)
