"""Answers and requests as messages, for server and client alike."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from manas._common import Common
from manas._exceptions import InvalidRequest
from manas._hits import Hits
from manas.api import Answer, Hit
from messaging.proto import adsindex_pb2 as pb


def decode_request(text: str) -> Any:
    """Read a request. Raises InvalidRequest for what is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"request_json is not JSON: {error}") from None


def reply_of(answer: Any, *, columns: bool = False) -> pb.SearchReply:
    """Return an answer as a message, its hits as columns if they have no groups."""
    reply = pb.SearchReply(
        total=answer["total"],
        total_is_lower_bound=answer["total_is_lower_bound"],
        partial=answer["partial"],
        problem=answer.get("problem", ""),
        missing_shards=answer.get("missing_shards"),
        page_token=answer.get("page_token"),
    )
    hits = answer["hits"]
    if columns and isinstance(hits, Hits):
        ids = hits.ad_ids
        if ids and isinstance(ids[0], int):
            reply.int_keys.extend(ids)
        else:
            reply.keys.extend(ids)
        reply.scores.extend(hits.scores)
        return _explained(reply, answer)
    if hits and "light" in hits[0]:
        reply.light_scores.extend([hit["light"] for hit in hits])
    if columns and hits and "groups" not in hits[0]:
        keys = [hit["ad_id"] for hit in hits]
        if isinstance(keys[0], int):
            reply.int_keys.extend(keys)
        else:
            reply.keys.extend(keys)
        reply.scores.extend([hit["score"] for hit in hits])
    else:
        reply.hits.extend(pb.Hit(ad_id=str(h["ad_id"]), score=h["score"], groups=h.get("groups")) for h in hits)
    return _explained(reply, answer)


def _explained(reply: pb.SearchReply, answer: Any) -> pb.SearchReply:
    if "plan" in answer:
        reply.explain_json = json.dumps({key: answer[key] for key in ("plan", "ad") if key in answer})
    return reply


def answer_of(reply: pb.SearchReply, *, int_keys: bool) -> Answer:
    """Return a message as an answer."""
    kind: type[int] | type[str] = int if int_keys else str
    keys: Sequence[int | str] = reply.int_keys or reply.keys
    hits: list[Hit] = [{"ad_id": key, "score": score} for key, score in zip(keys, reply.scores, strict=True)]
    for found in reply.hits:
        hit: Hit = {"ad_id": kind(found.ad_id), "score": found.score}
        if found.groups:
            hit["groups"] = list(found.groups)
        hits.append(hit)
    for hit, light in zip(hits, reply.light_scores, strict=bool(reply.light_scores)):
        hit["light"] = light
    answer: Answer = {
        "hits": hits,
        "total": reply.total,
        "total_is_lower_bound": reply.total_is_lower_bound,
        "partial": reply.partial,
    }
    if reply.problem:
        answer["problem"] = reply.problem
    if reply.missing_shards:
        answer["missing_shards"] = dict(reply.missing_shards)
    if reply.HasField("page_token"):
        answer["page_token"] = reply.page_token
    return answer


def common_message(common: Common) -> pb.Common:
    """Return what is common to all shards as a message."""
    return pb.Common(
        has_documents=common.documents is not None,
        documents=common.documents or 0,
        frequencies=common.frequencies,
        vector=common.vector or b"",
        candidates=not common.diversity,
        light_scores=common.light,
    )


def common_of(message: pb.Common) -> Common:
    """Return what is common to all shards."""
    documents = message.documents if message.has_documents else None
    return Common(
        documents, dict(message.frequencies), message.vector or None, not message.candidates, message.light_scores
    )
