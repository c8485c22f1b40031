"""Budget state per campaign: which may spend now. Spending updates a row here and rewrites no document.

The follower reads the whole budgets topic from its start at every start. The topic is compacted by key, so its newest
state of every campaign stays; it must never be trimmed like the deltas. Bases therefore carry no budget states.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from messaging.proto import adsindex_pb2 as pb

WINDOWS = ("day", "week", "total")
"""What impressions of a campaign to one user are counted and capped by; the caller's store of users rolls them."""
Seen = Mapping[str, Mapping[str, int]]
"""Campaign -> window -> how often the user has seen its ads."""


def is_funded(state: pb.BudgetState | None) -> tuple[bool, str]:
    """Return whether a campaign with this budget state may serve, and the sentence that says why."""
    if state is None:
        return False, "no budget is known for it"
    if state.deleted:
        return False, "its budget was deleted"
    if 0 < state.daily_micros <= state.spent_today_micros:
        return False, f"today's budget is spent: {_money(state.spent_today_micros, state.daily_micros, state.currency)}"
    if 0 < state.lifetime_micros <= state.spent_total_micros:
        return (
            False,
            f"the lifetime budget is spent: {_money(state.spent_total_micros, state.lifetime_micros, state.currency)}",
        )
    return True, "budget is left"


def is_capped(state: pb.BudgetState | None, counts: Mapping[str, int]) -> tuple[bool, str]:
    """Return whether a user who has seen so much of a campaign may see no more of it now, and the sentence."""
    if state is not None:
        for window in WINDOWS:
            cap, seen = getattr(state, f"frequency_cap_{window}"), counts.get(window, 0)
            if 0 < cap <= seen:
                return True, f"the user has seen it {seen} times ({window}), its cap is {cap}"
    return False, "below its frequency caps" if counts else "the user has not seen it"


def _money(spent: int, budget: int, currency: str) -> str:
    return f"{spent / 1e6:,.2f} of {budget / 1e6:,.2f} {currency}".rstrip()


class BudgetTable:
    """The newest state of every campaign. Not safe for threads: its owner locks."""

    def __init__(self) -> None:
        self._states: dict[str, pb.BudgetState] = {}
        self.funded: set[str] = set()

    def apply(self, state: pb.BudgetState) -> bool:
        """Take a state unless it is older than, or the same as, the known one; return whether it was taken."""
        known = self._states.get(state.campaign_id)
        if known is not None and known.version >= state.version:
            return False
        self._states[state.campaign_id] = state
        if is_funded(state)[0]:
            self.funded.add(state.campaign_id)
        else:
            self.funded.discard(state.campaign_id)
        return True

    def get(self, campaign_id: str) -> pb.BudgetState | None:
        """Return the newest state, deleted ones included."""
        return self._states.get(campaign_id)

    def capped(self, seen: Seen) -> list[str]:
        """Return the campaigns of which the user may see no more, sorted."""
        return sorted(key for key, counts in seen.items() if is_capped(self._states.get(key), counts)[0])

    def __len__(self) -> int:
        return len(self._states)

    def __iter__(self) -> Iterator[pb.BudgetState]:
        return iter(self._states.values())
