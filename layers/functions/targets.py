"""What sets the target of a class at a prior: a label, the background, a teacher, or nothing."""

from __future__ import annotations

from torch import Tensor

from layers.functions.matching import Matches


def choose_targets(
    labelled: Tensor, matches: Matches, teacher_knows: Tensor | None, teacher_first: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Decides for every prior and class who sets the target; the losses follow the two masks.

    ====================================================  =============================  =======  ====
    prior, and what is known of the class there           target                         unknown  soft
    ====================================================  =============================  =======  ====
    matched to a box                                      its label                      either   no
    not matched; labelled                                 background, hard negatives     no       no
    the same, class in ``teacher_first``, a teacher       the teacher's score and box    yes      yes
    knows it
    not matched; not labelled, a teacher knows it         the teacher's score and box    yes      yes
    not matched; not labelled, no teacher knows it        nothing: background and class  yes      no
                                                          merge
    ====================================================  =============================  =======  ====

    Args:
        labelled: bool Tensor[N, 1 or P, classes]: where labels tell whether there is an object of the class;
            one row an image where that holds for all of it.
        matches: matched priors.
        teacher_knows: bool Tensor[P, classes], see `SoftTargets`; None without teachers.
        teacher_first: bool Tensor[classes], classes for which teachers go before labels.

    Returns:
        ``unknown`` for `MultiBoxLoss`, bool Tensor[N, 1 or P, classes], and ``soft`` for `DistillationLoss`,
        bool Tensor[N, P, classes], None without teachers.
    """
    unknown = ~labelled
    if teacher_knows is None:
        return unknown, None
    unknown = unknown | (teacher_knows & teacher_first)
    soft = unknown & teacher_knows
    soft[matches.image, matches.prior] = False
    return unknown, soft
