"""How long a worker may take to answer."""

from __future__ import annotations

from triptych.experts.patience import Patience


def test_nobody_gets_less_than_the_least() -> None:
    patience = Patience(20_000)
    assert patience.deadline_us(1) == patience.deadline_us(500) == 20_000
    patience.learn(1, 50.0)
    assert patience.deadline_us(1) == 20_000


def test_who_usually_takes_long_gets_several_times_as_much() -> None:
    patience = Patience(20_000)
    patience.learn(300, 10_000.0)
    assert patience.deadline_us(300) == patience.deadline_us(511) == 80_000
    assert patience.deadline_us(1) == 20_000, "small messages are not large ones"


def test_one_slow_answer_does_not_change_what_is_usual_many_do() -> None:
    patience = Patience(1_000)
    for _ in range(50):
        patience.learn(8, 1_000.0)
    patience.learn(8, 20_000.0)
    assert patience.deadline_us(8) < 20_000
    for _ in range(100):
        patience.learn(8, 20_000.0)
    assert patience.deadline_us(8) > 140_000
