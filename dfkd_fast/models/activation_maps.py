"""Teacher and student by where they see a class: the activation maps of their stages, side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dfkd_fast.errors import UserError
from dfkd_fast.losses.cam import Weighting, cam_distance, class_maps, grad_cams
from dfkd_fast.models.feature_extractor import FeatureExtractor
from dfkd_fast.models.teacher import FrozenNet, NetOutput, pair_stages, stage_ends


class CamPair:
    """How far the activation maps of a student are from its teacher's (mSARC, in SpaceshipNet and MSARC).

    Compares the first `stages` stages by Grad-CAM, as many as both networks have, and the last feature maps by the maps
    of all classes. `teacher_maps` and `student_maps` are what the networks' outputs must hold, the teacher's with a
    graph. `alphas`, one for each stage and then one for the class maps, weigh their distances (MSARC, Eq. 9).
    Not an nn.Module: it owns nothing. Raises UserError for networks without stages or a linear classifier, and for
    weights of other layers than are compared.
    """

    def __init__(
        self, teacher: FrozenNet, student: nn.Module, stages: int, alphas: Sequence[float] = (), alphas_flag: str = ""
    ) -> None:
        """`student` is seen as it learns: a frozen alias, which shares its storage, will do.

        `alphas_flag` is what errors about `alphas` name.
        """
        if stages and not stage_ends(student):
            raise UserError("--student: no stages of convolutions found, whose activation maps are compared")
        self.teacher_maps, self.student_maps = pair_stages(teacher.stage_maps(stages), student)
        self._student = FeatureExtractor(student, maps=self.student_maps)
        self._teacher_weights, _ = teacher.class_weights, self._student.class_weights  # both there, or say so now
        self._alphas = tuple(alphas)
        _check_alphas(self._alphas, len(self.teacher_maps), alphas_flag)
        if self.teacher_maps:
            teacher.prepare(self.teacher_maps)

    def __call__(
        self, teacher: NetOutput, student: NetOutput, *, weighting: Weighting = "gradient", relu: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Mean squared distance of the class maps, and the sum of those of the stages' Grad-CAMs, both scalars.

        The class of both networks' Grad-CAM is the one that the teacher predicts. Gradients flow to the student's
        features and maps; its classifier's weights are constants, as all of the teacher is.
        """
        with torch.no_grad():
            expected = class_maps(teacher.features, self._teacher_weights)
        deep = cam_distance(class_maps(student.features, self._student.class_weights), expected)
        if self._alphas:
            deep = deep * self._alphas[-1]
        if not self.teacher_maps:
            return deep, torch.zeros_like(deep)
        classes = teacher.logits.detach().argmax(1)
        seen, wanted = (
            grad_cams(out.logits, [out.maps[name] for name in names], classes, weighting=weighting, relu=relu)
            for out, names in ((student, self.student_maps), (teacher, self.teacher_maps))
        )
        distances = [cam_distance(*pair) for pair in zip(seen, wanted, strict=True)]
        if self._alphas:
            distances = [alpha * each for alpha, each in zip(self._alphas[:-1], distances, strict=True)]
        return deep, torch.stack(distances).sum()


def _check_alphas(alphas: Sequence[float], stages: int, flag: str) -> None:
    given = f"{flag} {' '.join(map(str, alphas))}"
    if alphas and len(alphas) != stages + 1:
        raise UserError(f"{given}: {stages} stages and the class maps are compared; give {stages + 1} numbers")
    if not all(0 <= alpha < math.inf for alpha in alphas):
        raise UserError(f"{given}: choose numbers from 0 on")
