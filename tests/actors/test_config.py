"""Settings: what is impossible is refused by name."""

import pytest
from flexpipe.actors.config import ConfigError, ServeConfig, parse_size


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"stages": 0}, "stages is 0"),
        ({"step_tokens": 0}, "step-tokens is 0"),
        ({"port": 70000}, "port is 70000"),
        ({"drain": float("nan")}, "drain is nan"),
        ({"dtype": "int3"}, "dtype is 'int3'"),
        ({"stages": 2, "partition": "1,2"}, "give one of them"),
        ({"host": "0.0.0.0"}, "set api-key"),
        ({"kv_memory": "much"}, "'much' is no size"),
        ({"dry_run": True}, "give auto, too"),
        ({"auto": True, "pace": 0.0}, "pace is 0.0"),
        ({"auto": True, "pace": float("nan")}, "pace is nan"),
        ({"auto": True, "changes_per_hour": 0}, "changes-per-hour is 0"),
    ],
)
def test_an_impossible_setting_is_named(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        ServeConfig(**settings)


def test_beyond_loopback_a_key_is_enough():
    assert ServeConfig(host="0.0.0.0", api_key="secret").host == "0.0.0.0"


@pytest.mark.parametrize(("text", "size"), [("1024", 1024), ("2KiB", 2048), ("1.5 MiB", 1572864), ("2GiB", 2**31)])
def test_sizes_have_units(text, size):
    assert parse_size(text) == size
