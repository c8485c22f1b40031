"""Budget state per campaign: which may spend now. Spending updates a row here and rewrites no document.

The follower reads the whole budgets topic from its start at every start. The topic is compacted by key, so its newest
state of every campaign stays; it must never be trimmed like the deltas. Bases therefore carry no budget states.
"""

from __future__ import annotations

from collections.abc import Iterator

from messaging.proto import adsindex_pb2 as pb


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

    def __len__(self) -> int:
        return len(self._states)

    def __iter__(self) -> Iterator[pb.BudgetState]:
        return iter(self._states.values())
