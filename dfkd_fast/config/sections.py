"""The sections of a config: hardware, pool, evaluation, log, checkpoints, optimisers. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dfkd_fast.config.image_size import ImageSize, Size
from dfkd_fast.config.setting import setting


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Where and how to compute; flags of every command that computes."""

    precision: Literal["auto", "fp32", "bf16", "fp16", "tf32"] = "fp32"
    """numeric mode of the networks; auto: bf16 where the device multiplies it in hardware, else fp32"""
    channels_last: bool = True
    """memory format of images and convolution weights"""
    device: str = "auto"
    """auto (a GPU when there is one), cpu, cuda or cuda:N"""
    threads: int | None = setting(None, at_least=1, at_most=2**12)
    """CPU threads of torch; without it torch's own choice"""
    deterministic: bool = False
    """on a GPU, the same bits in every run: only algorithms that give them, or an error that names the operator"""


@dataclass(frozen=True, kw_only=True)
class NetworkInput:
    """What a network expects, where its file and its library do not say, or say it wrongly. Flags of every command
    that reads a network of the user's; none of these values is ever taken from the images it is evaluated on.
    """

    mean: tuple[float, ...] | None = setting(None, formerly=None)
    """mean of each channel that the network's input is normalised with, for pixels in [0, 1]: 0.485 0.456 0.406"""
    std: tuple[float, ...] | None = setting(None, formerly=None)
    """standard deviation of each channel, for pixels in [0, 1]"""
    in_chans: int | None = setting(None, at_least=1, formerly=None)
    """channels of the input: 3, or 1 for grey images; without it as many as --mean has values"""
    image_size: Size | None = setting(None, at_least=1, at_most=2**15)
    """height and width in pixels, 96 64; one number for square images"""
    interpolation: Literal["bilinear", "bicubic", "lanczos", "box", "nearest"] | None = setting(None, formerly=None)
    """filter that scales real images to that size"""
    num_classes: int | None = setting(None, at_least=2)
    """classes that it knows"""
    class_order: str | None = setting(None, formerly=None)
    """order of its outputs: a file with the data's class folders, one a line, or natural, which counts 2 before 10;
    without it what its file says, else the folders' names sorted as text
    """

    def __post_init__(self) -> None:
        if isinstance(self.image_size, tuple) and ImageSize.of(self.image_size).is_square:
            object.__setattr__(self, "image_size", self.image_size[0])  # as one number says it


@dataclass(frozen=True, kw_only=True)
class SavedNetworkInput(NetworkInput):
    """Which network a run folder or a file holds; flags of every command that reads one of any origin."""

    student: str | None = None
    """network in FILE, where the file does not say: named as train's --teacher; needed where it is your own"""
    student_args: tuple[str, ...] = setting((), formerly=())
    """arguments that your own network is built with, NAME=VALUE"""
    weights_key: str | None = None
    """which of several networks in FILE: the key of a dict (state_dict_ema), or the prefix of the names in one"""
    teacher_data: str = setting("", formerly="")
    """data set that it was trained on, whose convention stands in for what nobody states; as train's --teacher-data"""


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """Where synthetic images are kept."""

    capacity: int | None = setting(None, at_least=1, at_most=2**40)
    """most images kept at once; without it what the whole recipe makes"""
    policy: Literal["append", "cap", "ring"] | None = None
    """when it is full: stop with an error (append), drop what is new (cap) or overwrite the oldest (ring); without it
    as the method does
    """
    storage: Literal["auto", "device", "pinned", "mmap"] = "auto"
    """memory that holds the images: the device's own, page-locked host memory, or files on disk; auto goes by size"""
    stream: Literal["auto", "kernel", "dali", "torch"] = "auto"
    """what makes batches of them: the fused kernel, NVIDIA DALI (pip install dfkd-fast[dali]), or plain torch"""
    prefetch: int | None = setting(None, at_least=0)
    """batches prepared ahead; without it 2 where images pass through host memory (dali; mmap on a GPU), else 0"""
    quantize: Literal["round", "truncate"] = "round"
    """how pixels become bytes; the released codes truncate"""
    prior: str = setting("", formerly="")
    """procedural:N: begin with N pictures that are drawn at random, so chosen that the teacher sees every class in as
    many; without it empty. Changes results
    """


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Who carries out the optimisers' steps; which optimisers they are is the recipe's."""

    impl: Literal["auto", "fused", "foreach", "apex"] = "auto"
    """torch's fused forms (auto, fused), its foreach forms, or NVIDIA apex's fused ones, built from source"""


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Evaluation on real test images; never used to choose a model."""

    every: int = setting(1, at_least=0)
    """evaluate every so many epochs, and after the last; 0: only after the last"""
    batch_size: int = setting(512, at_least=1)
    """images per evaluation step"""
    decoder: Literal["auto", "dali", "pil"] = setting("auto", formerly="auto")
    """what decodes test images: NVIDIA DALI (pip install dfkd-fast[dali]) or Pillow; auto: Pillow, once, where they
    fit into 1 GiB, else DALI, or Pillow without it, for each evaluation
    """
    workers: int | None = setting(None, at_least=1, at_most=2**12)
    """threads that decode; without it one for each core, up to 16"""
    resize: int | None = setting(None, at_least=1, at_most=2**15, formerly=None)
    """pixels that the short side is scaled to before the middle is cut out; without it 8/7 of the network's size
    from 96 pixels on (256 for 224), and that size below
    """


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What a run reports while it is going on."""

    every: int = setting(50, at_least=1)
    """read the loss terms from the device every so many steps"""
    images_per_class: int = setting(8, at_least=0)
    """columns of the image grids; 0: no grids"""


@dataclass(frozen=True, kw_only=True)
class BnConfig:
    """BatchNorm of networks in training."""

    fused: Literal["off", "on", "auto"] = setting("off", formerly="off")
    """student's and generators' as one operator with the activation and the sum behind it, which rounds once; auto:
    where it is known to be faster
    """
    scope: Literal["rank", "global"] = setting("rank", formerly="rank")
    """over several processes, whose batch its statistics are of: each process's own, with a generator and a part of the
    pool for each; or that of all together, which then train the student that one process would
    """


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What a stopped run can be taken up from."""

    every: int = setting(1, at_least=1)
    """write a checkpoint every so many epochs, and after the last"""
    keep: int = setting(2, at_least=2)
    """newest checkpoints kept, two or more: where the newest is damaged, an older one is taken"""
