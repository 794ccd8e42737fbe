"""Operators of the FiftyOne App: accept, reject, and on to the next picture to review.

FiftyOne loads this module itself, from the folder that `curate.serve` names to it for its own App alone.
They set the tags that `synthdet curate RUN --pull` reads. By keys: ``` ` ``` opens the App's list of
operators, then their first letters and Enter. They also stand as buttons over the grid and in the viewer.
"""

from __future__ import annotations

from typing import Any, Final

import fiftyone.operators as foo
from fiftyone.operators import types

from synthdet.core.curation import ACCEPT, REJECT

REVIEW: Final = "needs review"
_ICONS: Final = {"accept": "check_circle", "reject": "cancel", "next_to_review": "skip_next"}


class _Curation(foo.Operator):  # type: ignore[misc]
    """What the three share: a name, and a button over the grid and in the viewer."""

    name_and_label: tuple[str, str]

    @property
    def config(self) -> Any:
        name, label = self.name_and_label
        return foo.OperatorConfig(name=name, label=label, icon=_ICONS[name])

    def resolve_placement(self, ctx: Any) -> Any:
        """A button where the picture is: over the grid without one open, in the viewer with one."""
        place = (
            types.Places.SAMPLES_VIEWER_ACTIONS
            if ctx.current_sample
            else types.Places.SAMPLES_GRID_SECONDARY_ACTIONS
        )
        name, label = self.name_and_label
        return types.Placement(place, types.Button(label=label, icon=f"/assets/{name}.svg"))


class _Judge(_Curation):
    """Tag the selected pictures, or the one that is open; then on to the next."""

    verdict: str
    other: str

    def execute(self, ctx: Any) -> dict[str, Any]:
        """Put the verdict on, take the opposite off.

        Returns:
            ``judged``: how many pictures.
        """
        chosen = list(ctx.selected) or [ctx.current_sample or ""]
        if chosen == [""]:
            ctx.ops.notify("select pictures, or open one", variant="warning")
            return {"judged": 0}
        pictures = ctx.dataset.select(chosen)
        waiting = _next_to_review(ctx)
        pictures.untag_samples(self.other)
        pictures.tag_samples(self.verdict)
        ctx.ops.clear_selected_samples()
        ctx.ops.reload_samples()
        if ctx.current_sample and waiting:
            ctx.ops.open_sample(id=waiting)
        return {"judged": len(pictures)}


class Accept(_Judge):
    """Accept with the boxes that are shown."""

    name_and_label = ("accept", "Accept (synthdet)")
    verdict, other = ACCEPT, REJECT


class Reject(_Judge):
    """Reject."""

    name_and_label = ("reject", "Reject (synthdet)")
    verdict, other = REJECT, ACCEPT


class NextToReview(_Curation):
    """Open the next picture that waits for a verdict."""

    name_and_label = ("next_to_review", "Next to review (synthdet)")

    def execute(self, ctx: Any) -> dict[str, Any]:
        """Open it.

        Returns:
            ``opened``: the sample's id; none where nothing waits.
        """
        waiting = _next_to_review(ctx)
        if waiting is None:
            ctx.ops.notify("nothing is left to review", variant="success")
            return {"opened": None}
        ctx.ops.open_sample(id=waiting)
        return {"opened": waiting}


def _next_to_review(ctx: Any) -> str | None:
    """Id of the picture in review after the one that is open, or of the first; not those being judged."""
    if not ctx.dataset.has_saved_view(REVIEW):
        return None
    ids: list[str] = ctx.dataset.load_saved_view(REVIEW).values("id")
    here = ids.index(ctx.current_sample) + 1 if ctx.current_sample in ids else 0
    judged = {*ctx.selected, ctx.current_sample}
    return next((one for one in ids[here:] + ids[:here] if one not in judged), None)


def register(plugin: Any) -> None:
    """Called by FiftyOne."""
    for operator in (Accept, Reject, NextToReview):
        plugin.register(operator)
