"""What is believed of drafters, of sequences, and of the drafts of a step."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from decode_worker.speculate.tracks import Track
from decode_worker.speculate.trust import Label, Offer, Trust
from triptych.engine.draft import Draft
from triptych.engine.sequence import Sequence

FIRST_WORTH = 0.5  # tokens that an ask brings before anything is known


class Beliefs:
    """A `Trust` per drafter, a `Track` per sequence and drafter."""

    def __init__(self) -> None:
        self._trust: dict[str, Trust] = {}
        self._worth: dict[str, float] = {}  # of an ask of the drafter, over all sequences
        self._tracks: dict[Sequence, dict[str, Track]] = {}

    def __len__(self) -> int:
        """Sequences that something is believed of."""
        return len(self._tracks)

    def forget(self, sequence: Sequence) -> None:
        self._tracks.pop(sequence, None)

    def trust(self, name: str) -> Trust:
        trust = self._trust.get(name)
        if trust is None:
            trust = self._trust[name] = Trust()
        return trust

    def track(self, sequence: Sequence, name: str) -> Track:
        tracks = self._tracks.get(sequence)
        if tracks is None:
            tracks = self._tracks[sequence] = {}
        track = tracks.get(name)
        if track is None:
            worth = self._worth.setdefault(name, FIRST_WORTH)
            track = tracks[name] = Track(worth)
        return track

    def tracks(self, sequence: Sequence) -> dict[str, Track]:
        """By drafter."""
        return self._tracks.get(sequence, {})

    def worth(self, sequence: Sequence, name: str, step: int, tokens: float, price: float) -> None:
        """An ask brought a draft that promises so many tokens."""
        self.track(sequence, name).asked(step, tokens, price)
        self._worth[name] += (tokens - self._worth[name]) * 0.02

    def offer(self, sequence: Sequence, draft: Draft) -> Offer:
        """The draft as it is believed; the same object until it was learned from."""
        track = self.track(sequence, draft.drafter)
        if track.offer is None or track.offer.draft is not draft:
            trust = self.trust(draft.drafter)
            track.offer = trust.offer(draft, track.asked_nodes, track.factor)
        return track.offer

    def learn(
        self,
        sequence: Sequence,
        drafter: str,
        labels: Seq[Label],
        step: int,
        *,
        verified: bool = True,
    ) -> None:
        """What became of nodes of the draft that it offered in this step."""
        track = self.track(sequence, drafter)
        if track.offer is None:
            return
        expected = self.trust(drafter).learn(track.offer, labels, verified=verified)
        track.offer = None
        right = sum(label.right for label in labels)
        track.judge(expected, right)
        if right:
            track.promises(step)
