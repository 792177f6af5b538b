import pytest

from pyrovi.errors import TrainingError
from pyrovi.train.kl import KLWarmup


def test_weight_rises_linearly_and_stays():
    warmup = KLWarmup(n_epochs=4, max_weight=0.8, min_weight=0.4)
    assert [warmup.weight(e, 0) for e in range(6)] == pytest.approx([0.4, 0.5, 0.6, 0.7, 0.8, 0.8])
    assert KLWarmup(n_steps=10).weight(0, 5) == 0.5
    assert KLWarmup(n_epochs=2, n_steps=10).weight(1, 0) == 0.5  # epochs take precedence
    assert KLWarmup(n_epochs=0).weight(0, 0) == 1


def test_open_length_is_half_of_the_planned_epochs():
    for epochs in (1, 2, 3, 10, 400):
        warmup = KLWarmup().planned(epochs)
        assert warmup.n_epochs == epochs // 2
        assert warmup.weight(epochs - 1, 0) == 1
    assert KLWarmup(n_steps=7).planned(100) == KLWarmup(n_steps=7)


@pytest.mark.parametrize(
    "options", [{"min_weight": 2.0}, {"min_weight": -1.0}, {"n_epochs": -1}, {"n_steps": -2}]
)
def test_impossible_options_are_refused(options):
    with pytest.raises(TrainingError, match="must not be"):
        KLWarmup(**options)
