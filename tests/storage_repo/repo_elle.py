"""A checker for list-append histories: infers version orders from reads and looks for what an isolation level forbids.

After Kingsbury and Alvaro, "Elle: Inferring Isolation Anomalies from Experimental Observations" (VLDB 2020), with the
anomalies of Adya's thesis (1999). Lists only grow, so one long read of a key tells the order of its versions. From the
orders follow the dependencies between transactions:

* ww: wrote the next version;  * wr: read what the other wrote;  * rw: read the version before the one the other wrote;
* rt (with `realtime`): was acknowledged before the other began.

A history is serializable only if these have no cycle, and snapshot-isolated only if none without two adjacent rw edges
(Cerone and Gotsman, "Analysing Snapshot Isolation", PODC 2016, theorem 10). Both are decided exactly, in linear time,
by strongly connected components; for snapshot isolation of the product of the graph with "was the last edge rw?".
"""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Op = tuple[str, Any, Any]
"""("append", key, value), or ("r", key, list that was read; None if unknown)."""

_TRIED_EDGES = 500
"""rw edges tried as the single one of a G-single cycle, per component: the label is best effort, the verdict is not."""


@dataclass(slots=True)
class Observed:
    """One transaction as its client saw it. `began` and `ended` order events; `ended` is None if it never ended."""

    ops: list[Op]
    outcome: str
    """ok, fail (certainly nothing happened) or info (nobody knows)."""
    began: int
    ended: int | None = None


@dataclass(slots=True)
class Verdict:
    """What was found: anomaly -> examples."""

    anomalies: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    @property
    def serializable(self) -> bool:
        """Tell whether nothing contradicts serializability (strict, if realtime edges were asked for)."""
        return not self.anomalies

    @property
    def snapshot_isolated(self) -> bool:
        """Tell whether nothing contradicts snapshot isolation (strong, if realtime edges were asked for)."""
        return not self.anomalies.keys() - {"G2-item"}


class _History:
    """Version orders and dependency edges of a history."""

    def __init__(self, history: Sequence[Observed], realtime: bool) -> None:
        self.txns = history
        self.verdict = Verdict()
        self.edges: dict[str, list[tuple[int, int]]] = {"ww": [], "wr": [], "rw": [], "rt": []}
        self.nodes = len(history)
        self._writers: dict[tuple[Any, Any], int] = {}
        self._finals: dict[tuple[int, Any], Any] = {}
        self._reads: list[tuple[int, Any, list[Any]]] = []  # external: what was there before the own appends
        self._orders: dict[Any, list[Any]] = {}
        self._index_writes()
        self._index_reads()
        self._check_aborted_and_intermediate()
        self._derive()
        self._check_lost_updates()
        if realtime:
            self._derive_realtime()

    def _index_writes(self) -> None:
        for t, txn in enumerate(self.txns):
            for kind, key, value in txn.ops:
                if kind == "append":
                    if (key, value) in self._writers:
                        raise ValueError(f"{value} is appended twice to {key}: such a history cannot be checked")
                    self._writers[key, value] = t
                    self._finals[t, key] = value

    def _index_reads(self) -> None:
        for t, txn in enumerate(self.txns):
            if txn.outcome != "ok":
                continue
            state: dict[Any, list[Any]] = {}
            own: dict[Any, list[Any]] = defaultdict(list)
            for kind, key, value in txn.ops:
                if kind == "append":
                    own[key].append(value)
                    if key in state:
                        state[key] = [*state[key], value]
                    continue
                seen = list(value or ())
                mine = own[key]
                if key in state:
                    if seen != state[key]:
                        self._found("internal", f"T{t} read {key}={seen}, must be {state[key]}")
                elif mine and seen[-len(mine) :] != mine:
                    self._found("internal", f"T{t} read {key}={seen} without its own {mine}")
                else:
                    self._reads.append((t, key, seen[: len(seen) - len(mine)]))
                state[key] = seen
                self._extend_order(t, key, seen)

    def _extend_order(self, t: int, key: Any, seen: list[Any]) -> None:
        if len(set(seen)) != len(seen):
            self._found("duplicate", f"T{t} read {key}={seen}")
        order = self._orders.setdefault(key, [])
        short, long = (seen, order) if len(seen) <= len(order) else (order, seen)
        if long[: len(short)] != short:
            self._found("incompatible-order", f"T{t} read {key}={seen}, others {order}")
        self._orders[key] = long

    def _check_aborted_and_intermediate(self) -> None:
        for t, key, base in self._reads:
            for value in base:
                writer = self._writers.get((key, value))
                if writer is None:
                    self._found("garbage", f"T{t} read {key} with {value}, which nobody wrote")
                elif self.txns[writer].outcome == "fail":
                    self._found("G1a", f"T{t} read {key} with {value} of T{writer}, which aborted")
            last = self._writers.get((key, base[-1])) if base else None
            if last is not None and last != t and self._finals[last, key] != base[-1]:
                self._found("G1b", f"T{t} read {key}={base} between two appends of T{last}")

    def _derive(self) -> None:
        place = {(key, value): i for key, order in self._orders.items() for i, value in enumerate(order)}
        read = {self._writers[version] for version in place if version in self._writers}
        unseen: dict[Any, list[int]] = defaultdict(list)  # committed, never read: after all that was read
        for version, writer in self._writers.items():
            if version not in place and (self.txns[writer].outcome == "ok" or writer in read):
                unseen[version[0]].append(writer)

        def next_writers(key: Any, at: int) -> Iterable[int]:
            order = self._orders[key]
            if at + 1 < len(order):
                return (self._writers[key, order[at + 1]],) if (key, order[at + 1]) in self._writers else ()
            return unseen[key]

        for key, order in self._orders.items():
            for at, value in enumerate(order):
                if (key, value) in self._writers:
                    self._add("ww", self._writers[key, value], next_writers(key, at))
        for t, key, base in self._reads:
            if base and (key, base[-1]) in self._writers:
                self._add("wr", self._writers[key, base[-1]], (t,))
            if not base or (key, base[-1]) in place:  # else the orders contradict each other, which was noted
                self._add("rw", t, next_writers(key, place[key, base[-1]] if base else -1))

    def _check_lost_updates(self) -> None:
        updates: dict[tuple[Any, Any], list[int]] = defaultdict(list)
        for t, key, base in self._reads:
            if (t, key) in self._finals:
                updates[key, base[-1] if base else None].append(t)
        for (key, version), txns in updates.items():
            if len(txns) > 1:
                self._found(
                    "lost-update", f"{' '.join(f'T{t}' for t in txns)} all read {key} up to {version} and appended"
                )

    def _derive_realtime(self) -> None:
        """Link every transaction to those that began after its end, by a chain of one node per end."""
        events = sorted(
            [(txn.began, 1, t) for t, txn in enumerate(self.txns)]
            + [(txn.ended, 0, t) for t, txn in enumerate(self.txns) if txn.outcome == "ok" and txn.ended is not None]
        )
        last = None
        for _, begins, t in events:
            if begins:
                if last is not None:
                    self.edges["rt"].append((last, t))
            else:
                self.edges["rt"].append((t, self.nodes))
                if last is not None:
                    self.edges["rt"].append((last, self.nodes))
                last = self.nodes
                self.nodes += 1

    def _add(self, kind: str, source: int, targets: Iterable[int]) -> None:
        self.edges[kind].extend((source, target) for target in targets if target != source)

    def _found(self, anomaly: str, text: str) -> None:
        if len(self.verdict.anomalies[anomaly]) < 5:
            self.verdict.anomalies[anomaly].append(text)


def check(history: Sequence[Observed], *, realtime: bool = False) -> Verdict:
    """Judge a history; `realtime` adds what clients knew from the order of events (strong / strict variants)."""
    inferred = _History(history, realtime)
    verdict = inferred.verdict
    _check_cycles(inferred, ("ww",), ("wr",), "", verdict)
    if realtime:
        _check_cycles(inferred, ("ww", "rt"), ("wr",), "-realtime", verdict)
    return verdict


def _check_cycles(h: _History, writes: Sequence[str], reads: Sequence[str], suffix: str, verdict: Verdict) -> None:
    """Name the cycles of each kind, unless the same kind was found without realtime edges."""

    def found(anomaly: str, text: str) -> None:
        if not suffix or anomaly not in verdict.anomalies:
            verdict.anomalies[anomaly + ("" if anomaly == "G2-item" else suffix)].append(text)

    writing = [edge for kind in writes for edge in h.edges[kind]]
    depending = writing + [edge for kind in reads for edge in h.edges[kind]]
    only_writes = _components(_adjacency(h.nodes, writing))
    for component in only_writes:
        found("G0", _names(component, h))
    for component in _components(_adjacency(h.nodes, depending)):
        members = set(component)
        if any(a in members and b in members for kind in reads for a, b in h.edges[kind]):
            found("G1c", _names(component, h))

    # Product: node 2t = reached by a dependency (or start), 2t + 1 = reached by an anti-dependency.
    product: list[list[int]] = [[] for _ in range(2 * h.nodes)]
    for a, b in depending:
        product[2 * a].append(2 * b)
        product[2 * a + 1].append(2 * b)
    for a, b in h.edges["rw"]:
        product[2 * a].append(2 * b + 1)
    forbidden: set[int] = set()
    dependencies = _adjacency(h.nodes, depending)
    for component in _components(product):
        members = {node >> 1 for node in component}
        forbidden |= members
        anti = [(a, b) for a, b in h.edges["rw"] if a in members and b in members]
        if anti:
            single = any(_reaches(dependencies, b, a, members) for a, b in anti[:_TRIED_EDGES])
            found("G-single" if single else "G-nonadjacent", _names(members, h))
    for component in _components(_adjacency(h.nodes, depending + h.edges["rw"])):
        if forbidden.isdisjoint(component):
            found("G2-item", _names(component, h))


def _adjacency(nodes: int, edges: Iterable[tuple[int, int]]) -> list[list[int]]:
    successors: list[list[int]] = [[] for _ in range(nodes)]
    for a, b in edges:
        successors[a].append(b)
    return successors


def _reaches(successors: Sequence[Sequence[int]], start: int, goal: int, within: set[int]) -> bool:
    seen, queue = {start}, deque((start,))
    while queue:
        node = queue.popleft()
        if node == goal:
            return True
        for following in successors[node]:
            if following in within and following not in seen:
                seen.add(following)
                queue.append(following)
    return False


def _components(successors: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Yield strongly connected components of more than one node (Tarjan 1972, with an explicit stack)."""
    index = [-1] * len(successors)
    low = [0] * len(successors)
    on_stack = bytearray(len(successors))
    stack: list[int] = []
    counter = 0
    for root in range(len(successors)):
        if index[root] >= 0:
            continue
        work = [(root, iter(successors[root]))]
        index[root] = low[root] = counter
        counter += 1
        stack.append(root)
        on_stack[root] = 1
        while work:
            node, following = work[-1]
            for child in following:
                if index[child] < 0:
                    index[child] = low[child] = counter
                    counter += 1
                    stack.append(child)
                    on_stack[child] = 1
                    work.append((child, iter(successors[child])))
                    break
                if on_stack[child]:
                    low[node] = min(low[node], index[child])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    component = []
                    while True:
                        member = stack.pop()
                        on_stack[member] = 0
                        component.append(member)
                        if member == node:
                            break
                    if len(component) > 1:
                        yield component


def _names(component: Iterable[int], h: _History) -> str:
    txns = sorted(node for node in component if node < len(h.txns))
    return f"{len(txns)} transactions: " + ", ".join(f"T{t} {h.txns[t].ops}" for t in txns[:4])


_TOKEN = re.compile(
    r';[^\n]*|[\s,]+|([\[\]{}])|:([^\s,\[\]{}]+)|(-?\d+)(?=[\s,\]}]|$)|(nil|true|false)|"((?:[^"\\]|\\.)*)"'
)


def read_edn(path: Path) -> list[Observed]:
    """Read a Jepsen history: invocations and completions of each process, one map per line."""
    history: list[Observed] = []
    running: dict[Any, Observed] = {}
    for position, event in enumerate(_values(path.read_text())):
        process = event.get("process")
        if event.get("f", "txn") != "txn":
            continue  # what the fault injector did
        if event["type"] == "invoke":
            running[process] = Observed([tuple(op) for op in event["value"]], "info", position)
            history.append(running[process])
        else:
            txn = running.pop(process)
            txn.outcome, txn.ended = event["type"], position
            if txn.outcome == "ok":
                txn.ops = [tuple(op) for op in event["value"]]
    return history


def _values(text: str) -> Iterator[Any]:
    """Yield the top-level values of EDN text made of maps, vectors, keywords, integers, strings and nil."""
    stack: list[list[Any]] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"not understood at {at}: {text[at : at + 40]!r}")
        at = match.end()
        bracket, keyword, number, constant, string = match.groups()
        value: Any
        if bracket in ("[", "{"):
            stack.append([])
            continue
        if bracket == "]":
            value = stack.pop()
        elif bracket == "}":
            items = stack.pop()
            value = dict(zip(items[::2], items[1::2], strict=True))
        elif keyword is not None:
            value = keyword
        elif number is not None:
            value = int(number)
        elif string is not None:
            value = string
        elif constant is not None:
            value = {"nil": None, "true": True, "false": False}[constant]
        else:
            continue  # white space or a comment
        if stack:
            stack[-1].append(value)
        else:
            yield value
