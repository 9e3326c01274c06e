"""The bench of encryption: every kind and size is measured, and ratios are to the clear link."""

import pytest
from flexpipe.actors.config import ConfigError
from flexpipe.bench import encryption
from flexpipe.commands.bench import encryption_command


def test_each_kind_of_link_is_measured_at_each_size():
    figures = encryption.measure(rounds=1, mib=1)
    for kind in encryption.KINDS:
        assert all(figures.hop_us[kind][size] > 0 for size in encryption.HOP_BYTES)
        assert all(figures.pages_gb_s[kind][size] > 0 for size in encryption.PAGE_BYTES)


def test_figures_are_ratios_to_the_clear_link():
    figures = encryption.EncryptionFigures(
        {"clear": {64: 10.0}, "sealed": {64: 15.0}}, {"clear": {1: 2.0}, "sealed": {1: 1.0}}
    )
    assert (figures.hop_ratio("sealed", 64), figures.pages_share("sealed", 1)) == (1.5, 0.5)


def test_nothing_to_measure_is_misuse():
    with pytest.raises(ConfigError, match="at least 1"):
        encryption_command(0, 1, as_json=True)
