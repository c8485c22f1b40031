"""Copies of published bases: what an address has in service is brought to a home, verified, and then served from it.

Serving itself only ever looks at its own directory: with the address away it goes on with what it has.
"""

from __future__ import annotations

import shutil

import structlog

from batch_workflows._objects_errors import ObjectMissing, ObjectsError
from batch_workflows.base_store import BaseStore
from manas import MANIFEST, SegmentError, current_base, prune_bases, publish, rollback
from messaging.home import Home
from messaging.stage import StageContext

MIRRORING = ".mirror-"
"""Begins the name of a base that is being copied; a copy that was interrupted goes on where it was."""
LOOK_SECONDS = 5.0
"""Between two looks at the pointer: a base is built every few hours, and a request to S3 costs money."""
COPIES_KEPT = 3
"""As many as are kept where they are published: a rollback then copies nothing."""


def mirror(store: BaseStore, home: Home) -> str | None:
    """Bring a home's pointer to the base that is in service at an address; return its version if that changed.

    Files of an interrupted copy that have their size are not copied again; all are verified before the pointer moves.
    Raises ObjectsError, SegmentError (the old base stays).
    """
    version = store.current()
    if version is None or version == current_base(home.base):
        return None
    if (home.base / version / MANIFEST).exists():
        return rollback(home.base, version)
    manifest = store.manifest(version)
    copy = home.base / f"{MIRRORING}{version}"
    for other in home.base.glob(f"{MIRRORING}*"):
        if other != copy:
            shutil.rmtree(other)
    objects = store.objects.below(version)
    for name, entry in manifest.files.items():
        file = copy / name
        if not file.is_file() or file.stat().st_size != entry.bytes:
            objects.get(name, file, entry.bytes)
    objects.get(MANIFEST, copy / MANIFEST)
    try:
        published = publish(home.base, copy, version=version)
    except SegmentError:
        shutil.rmtree(copy)  # damaged on the way or at its source: the next look begins anew
        raise
    prune_bases(home.base, COPIES_KEPT)
    return published


def run(context: StageContext) -> None:
    """Follow the home's address until told to stop; a stage. What goes wrong is counted and tried again."""
    store = BaseStore.of(context.home)
    problem = ""
    context.ready(0)
    while not context.stop.is_set():
        try:
            if (version := mirror(store, context.home)) is not None:
                context.metrics.count("bases_mirrored")
                structlog.get_logger().info("base_mirror.moved", base=version, address=str(store.objects.address))
            problem = ""
        except ObjectMissing as error:  # pruned while we copied: the pointer has moved on
            structlog.get_logger().info("base_mirror.gone", error=str(error))
        except (ObjectsError, SegmentError) as error:
            context.metrics.count("mirror_failures")
            if str(error) != problem:
                problem = str(error)
                structlog.get_logger().error("base_mirror.failed", error=problem)
        context.beat()
        context.stop.wait(LOOK_SECONDS)
