"""The schema: what is refused, with which message, and that nothing is accepted and ignored."""

import argparse

import pytest

from inception_jax import config as configs
from inception_jax import schema
from inception_jax.config import Config, ConfigError
from inception_jax.errors import UserError
from inception_jax.sweeps import settings


def test_the_default_is_valid_and_round_trips():
    recipe = configs.default()
    config = Config(recipe)
    again = configs.from_dict(config.to_dict())
    assert Config(again).to_json() == config.to_json()
    assert again.augmentation.area == (0.08, 1.0)  # JSON's list is a tuple again


def test_every_field_has_a_description():
    for path, field in schema.fields():
        assert len(field.doc) > 10, path


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("batch_size", 0, r"config.batch_size = 0: it must be greater than 0"),
        ("optimizer.momentum", 1.5, r"config.optimizer.momentum = 1.5: it must be at least 0 and less than 1"),
        ("optimizer.learning_rate", float("nan"), r"finite number"),
        ("schedule.name", "cosin", r"it must be one of 'constant', 'exponential'"),
        ("parallel.batch_norm", "groups:0", r"it must be one of 'local', 'global', 'groups:N', 'examples:N'"),
        ("optimizer.freeze", ("(",), r"config.optimizer.freeze = \('\(',\): it must be regular expressions"),
        ("optimizer.learning_rate_multipliers", (("bias",),), r"it must be pairs of a regular expression and a number"),
        ("augmentation.area", (0.5, 0.1), r"0 < low <= high <= 1"),
        ("augmentation.photometric", "slim-fast", r"one of 'none', 'howard', 'slim', 'slim_fast'"),
        ("augmentation.policy", "trivialaugment", r"one of 'none', 'randaugment', 'trivialaugment_wide'"),
        ("augmentation.policy_magnitude", 31, r"at least 0 and at most 30"),
        ("augmentation.lighting", -0.1, r"at least 0"),
        ("augmentation.erasing_probability", 1.5, r"at least 0 and at most 1"),
        ("augmentation.erasing_area", (0.4, 0.02), r"0 < low <= high <= 1"),
        ("augmentation.mixup_alpha", -1.0, r"at least 0 and at most 1,000"),
        ("augmentation.mix_probability", 0.0, r"greater than 0 and at most 1"),
        ("model.dtype", "float16", r"one of 'float32', 'bfloat16', 'float64'"),
        ("checkpoint.keep", 1, r"at least 2"),
    ],
)
def test_values_out_of_range_name_the_field_and_what_is_allowed(path, value, message):
    recipe = configs.default()
    section, _, name = path.rpartition(".")
    (recipe[section] if section else recipe)[name] = value
    with pytest.raises(ConfigError, match=message):
        Config(recipe)


def test_an_unknown_field_names_the_nearest():
    recipe = configs.default().unlock()
    recipe.optimizer.learningrate = 0.1
    with pytest.raises(
        ConfigError,
        match=r"config.optimizer.learningrate: no such field; did you mean "
        r"'optimizer.learning_rate'",
    ):
        Config(recipe)


def test_a_missing_field_is_an_error():
    recipe = configs.default().unlock()
    del recipe.optimizer.momentum
    with pytest.raises(ConfigError, match=r"config.optimizer.momentum is missing"):
        Config(recipe)


def test_reading_an_unknown_field_names_the_nearest():
    with pytest.raises(AttributeError, match=r"config.optimizer.momentun: no such field; did you mean 'momentum'"):
        _ = Config(configs.default()).optimizer.momentun


def test_a_field_that_was_set_and_never_read_is_refused():
    recipe = configs.default()
    recipe.optimizer.b1 = 0.5
    config = Config(recipe)
    _ = config.optimizer.momentum
    with pytest.raises(ConfigError, match=r"config.optimizer.b1 = 0.5: nothing reads it"):
        config.refuse_unread()
    assert config.optimizer.b1 == 0.5
    config.refuse_unread()


def test_unset_placeholders_read_as_none():
    config = Config(configs.default())
    assert config.num_steps is None
    assert config.model.dropout_rate is None
    assert config.model.options.read_specified() == {}


def test_a_mapping_in_a_copy_of_a_config_becomes_pairs_too():
    """A copy that resolves references has a ConfigDict for it."""
    recipe = configs.default()
    recipe.optimizer.name, recipe.optimizer.options = "optax.lamb", {"b1": 0.8}
    for config in (recipe.copy_and_resolve_references(), recipe):
        assert Config(config).optimizer.options == (("b1", 0.8),)


def test_the_metric_of_the_best_checkpoint_follows_the_labels():
    for labels, metric in (("single", "top1"), ("multi", "mean_average_precision")):
        recipe = configs.default()
        recipe.data.labels = labels
        config = Config(recipe)
        assert config.to_dict()["checkpoint"]["best_metric"] == metric == config.checkpoint.best_metric
        assert recipe.checkpoint.best_metric is None  # the labels may change yet
        chosen = argparse.Namespace(metric=None)
        assert settings._metric(chosen, config) == metric
        chosen.metric = "top5" if labels == "multi" else "micro_f1"
        with pytest.raises(
            UserError, match=f"--metric={chosen.metric}: with config.data.labels = '{labels}' the metrics"
        ):
            settings._metric(chosen, config)
        recipe.stop.target_metric = chosen.metric
        with pytest.raises(
            ConfigError, match=f"config.stop.target_metric = '{chosen.metric}': with config.data.labels"
        ):
            Config(recipe)
    earlier = configs.from_dict({"checkpoint": {"best_metric": "top1"}})  # as an earlier version wrote it
    assert Config(earlier).to_dict()["checkpoint"]["best_metric"] == "top1" and earlier.data.labels == "single"
