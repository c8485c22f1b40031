"""The ads in Manas: built as any base is, asked as a caller in the same process asks."""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec
import numpy as np

from benchmarks._retrieval_corpus import catalog
from benchmarks._retrieval_requests import Request
from manas import Index, Segment
from manas._folder import Folder, FoldLimits
from manas._hits import Hits
from manas._static_scores import StaticScores
from messaging.proto import adsindex_pb2 as pb


class OurEngine:
    """Answers requests from a segment."""

    def __init__(self, directory: Path) -> None:
        self._catalog, self._directory = catalog(), directory
        self._segment = Segment.open(directory, verify=False)
        self._built = self._segment.scores
        self._index = Index(self._catalog, self._segment)

    def answer(self, request: Request, k: int) -> tuple[list[int], list[float]]:
        """Return the best `k` by light score: ids; scores."""
        hits = self._index.search(request, k, counting=False)["hits"]
        assert isinstance(hits, Hits)
        return hits.ad_ids, hits.scores

    @staticmethod
    def rows(answer: tuple[list[int], list[float]]) -> list[tuple[int, float]]:
        """Return ids and scores."""
        return list(zip(*answer, strict=True))

    def documents(self, answer: tuple[list[int], list[float]]) -> list[bytes]:
        """Return the documents of an answer's hits."""
        return [served.body for served in self._index.get([str(number) for number in answer[0]])]

    def rescore(self, file: Path | None) -> None:
        """Rank by other scores, by id from 1 on, whatever order the documents are in; None: those of the build."""
        self._segment.scores = self._built
        if file is not None:
            values = np.full(len(self._built.values), -np.inf)
            keys = self._segment.keys(np.arange(self._segment.count, dtype=np.uint32), int_keys=True)
            values[: len(keys)] = np.load(file)[keys - 1]
            self._segment.scores = StaticScores.of(values, self._built.ties, ordered=False)

    def change(self, file: Path) -> str:
        """Take in deltas as a server does: folded whenever enough have come; return what they became."""
        rows = msgspec.msgpack.decode(file.read_bytes(), type=list[tuple[str, int, bytes]])
        index, limits = self._index, FoldLimits()
        directory = Path(tempfile.mkdtemp(prefix="folds-", dir=self._directory.parent))
        folder = Folder(directory, index.view, self._catalog, limits, index)
        for first in range(0, len(rows), limits.documents):
            part = rows[first : first + limits.documents]
            index.apply_documents(pb.DocumentDelta(document_id=i, version=v, body=b) for i, v, b in part)
            folder.fold_now({})
        folds = index.view.folds
        live = len(rows) - sum(map(len, folds))
        return f"{len(rows):,} changed documents are {len(folds)} folded segments and {live:,} documents since"
