"""What an FFN worker offers, and who knows it."""

from __future__ import annotations

import asyncio

from ffn_worker.offer import Offer
from triptych.experts.units import Unit

A, B, C = Unit(0, 0), Unit(0, 1), Unit(1, 0)


async def settle() -> None:
    """Lets every task go as far as it can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_every_change_is_a_version() -> None:
    offer = Offer()
    assert offer.change(add=[A, B]) == 1 and offer.units == {A, B}
    assert offer.change(remove=[A], add=[C]) == 2 and offer.units == {B, C}
    assert offer.change() == 3 == offer.version


async def test_who_waits_for_news_hears_of_the_last_version_only() -> None:
    offer = Offer()
    waiting = asyncio.create_task(offer.newer(0))
    await settle()
    assert not waiting.done()
    offer.change(add=[A])
    offer.change(add=[B])
    assert await waiting == 2
    assert await offer.newer(-1) == 2, "old news are there at once"


async def test_a_version_is_known_when_every_follower_has_said_so() -> None:
    offer = Offer()
    await offer.known(7)  # nobody has to know
    first, second = offer.join("decode-0"), offer.join("decode-1")
    version = offer.change(add=[A])
    waiting = asyncio.create_task(offer.known(version))
    offer.heard(first, version)
    await settle()
    assert not waiting.done()
    offer.heard(second, version + 1)
    await waiting
    assert offer.num_followers == 2


async def test_a_follower_that_leaves_is_waited_for_no_more() -> None:
    offer = Offer()
    follower = offer.join("decode-0")
    waiting = asyncio.create_task(offer.known(offer.change(add=[A])))
    await settle()
    assert not waiting.done()
    offer.leave(follower)
    await waiting


async def test_one_that_joins_meanwhile_has_to_know_too() -> None:
    offer = Offer()
    version = offer.change(remove=[A])
    late = offer.join("decode-9")
    waiting = asyncio.create_task(offer.known(version))
    own = asyncio.create_task(offer.known_by(late, version))
    await settle()
    assert not waiting.done() and not own.done()
    offer.heard(late, version)
    await asyncio.gather(waiting, own)


async def test_an_old_answer_takes_nothing_back() -> None:
    offer = Offer()
    follower = offer.join("decode-0")
    version = offer.change(add=[A])
    offer.heard(follower, version)
    offer.heard(follower, version - 1)
    await offer.known(version)
