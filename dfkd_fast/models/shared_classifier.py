"""A student without a classifier of its own: its features, brought into the teacher's shape, go to the teacher's.

HiDFD (Tang et al., AAAI 2025, arXiv:2412.13525) distils features alone and deploys student, projector and the teacher's
classifier. The projector is SimKD's (Chen et al., CVPR 2022, arXiv:2203.14001), which HiDFD's release uses.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfkd_fast.config.image_size import ImageSize
from dfkd_fast.errors import UserError
from dfkd_fast.losses.gan import feature_distance
from dfkd_fast.models.feature_extractor import FeatureExtractor
from dfkd_fast.models.info import ModelInfo
from dfkd_fast.models.teacher import FrozenNet, NetOutput, unregistered

_FORM = re.compile(r"shared(\d+)(?:x(\d+)(?:x(\d+))?)?")
_SHRINK = 2  # the projector's inner width is the teacher's over this


class SharedForm(NamedTuple):
    """How a student reads the teacher's classifier; its text is what stands behind `STUDENT+` in a network's name."""

    width: int
    """features that the classifier reads"""
    size: ImageSize | None = None
    """height and width, at most, of the maps that a projector brings to that width; None: no projector"""

    def __str__(self) -> str:
        return f"shared{self.width}" if self.size is None else f"shared{self.width}x{self.size}"

    @classmethod
    def parse(cls, text: str, flag: str) -> SharedForm:
        """The inverse of `str`. Raises UserError, naming `flag`, for any other text."""
        match = _FORM.fullmatch(text)
        if match is None:
            raise UserError(
                f"{flag}: +{text} is no form of a shared classifier; choose +sharedD, +sharedDxS or +sharedDxHxW"
            )
        if match[2] is None:
            return cls(int(match[1]))
        return cls(int(match[1]), ImageSize(int(match[2]), int(match[3] or match[2])))


class Projector(nn.Module):
    """SimKD's: 1x1, 3x3 and 1x1 convolutions, each with BN and ReLU. Maps (B, C, h, w) -> (B, width, h', w').

    Maps larger than `size` are first pooled to it, as the teacher's own are that small.
    """

    def __init__(self, channels: int, width: int, size: ImageSize) -> None:
        super().__init__()
        inner = max(1, width // _SHRINK)
        self.size = size
        self.layers = nn.Sequential(
            nn.Conv2d(channels, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, inner, 3, padding=1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )

    def forward(self, maps: Tensor) -> Tensor:
        projected: Tensor = self.layers(pooled_to(maps, self.size))
        return projected


class SharedClassifierNet(nn.Module):
    """Normalised images (B, C, H, W) -> logits (B, K): student's features, projector if any, teacher's classifier."""

    def __init__(self, student: nn.Module, projector: nn.Module, classifier: nn.Linear) -> None:
        super().__init__()
        training = student.training
        self.body = FeatureExtractor(student.eval())
        student.train(training)
        self.projector, self.classifier = projector, classifier

    def forward(self, view: Tensor) -> Tensor:
        maps = self.projector(self.body(view).features)
        logits: Tensor = self.classifier(maps.mean((2, 3)))
        return logits


def share_classifier(student: nn.Module, form: SharedForm, info: ModelInfo) -> SharedClassifierNet:
    """A network of that form around a student, to be filled from a file."""
    training = student.training
    channels = FeatureExtractor(student.eval()).width(info)
    student.train(training)
    projector: nn.Module = nn.Identity() if form.size is None else Projector(channels, form.width, form.size)
    return SharedClassifierNet(student, projector, nn.Linear(form.width, info.num_classes))


class ClassifierSharing(nn.Module):
    """What a student learns that is to read a teacher's classifier: features like the teacher's.

    With `projects` its last feature map, through a projector, is compared with the teacher's (SimKD, HiDFD's release);
    else its pooled features as they are (HiDFD, Eq. 14), which must then be as many.
    Raises ValueError where they are not, UserError where a network has no linear classifier on pooled features.
    """

    def __init__(self, student: nn.Module, teacher: FrozenNet, info: ModelInfo, *, projects: bool) -> None:
        super().__init__()
        self._classifier = unregistered(teacher.classifier)
        view = info.blank(next(student.parameters()))
        with torch.no_grad():
            own, target = FeatureExtractor(student)(view).features, teacher(view, moments=False).features
        assert own is not None, "a network that has been tapped"
        assert target is not None, "a network with a classifier on pooled features"
        (_, channels, *_), (_, width, *_) = own.shape, target.shape
        if not projects and channels != width:
            raise ValueError(f"the student has {channels} features, the teacher {width}")
        both = zip(own.shape[-2:], target.shape[-2:], strict=True)
        size = ImageSize(*map(min, both)) if projects else None
        self.form = SharedForm(width, size)
        self.projector: nn.Module = nn.Identity() if size is None else Projector(channels, width, size)

    def loss(self, student: NetOutput, teacher: NetOutput) -> Tensor:
        """Scalar, in at least float32."""
        if self.form.size is None:
            return feature_distance(student.pooled(), teacher.pooled())
        assert teacher.features is not None, "a network with a classifier on pooled features"
        return map_distance(self.projector(student.features), teacher.features)

    def deploy(self, student: nn.Module) -> SharedClassifierNet:
        """The network that uses it: student and projector as they are now, and the classifier."""
        return SharedClassifierNet(student, self.projector, self._classifier[0])

    def deployed_name(self, student: str) -> str:
        """What `load_model` calls that network, where the student's own name is `student`."""
        return f"{student}+{self.form}"


def map_distance(projected: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference of two stacks of maps (B, D, h, w), the target pooled to the other's size -> scalar."""
    dtype = torch.promote_types(projected.dtype, torch.float32)
    return F.mse_loss(projected.to(dtype), pooled_to(target, ImageSize(*projected.shape[-2:])).to(dtype))


def pooled_to(maps: Tensor, size: ImageSize) -> Tensor:
    """Maps (B, C, h, w), averaged over cells to `size` where a side of theirs is longer."""
    smaller = ImageSize(*map(min, zip(maps.shape[-2:], size, strict=True)))
    return maps if maps.shape[-2:] == smaller else F.adaptive_avg_pool2d(maps, smaller)
