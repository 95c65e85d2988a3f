"""The config of a run: every setting, as frozen dataclasses.

The recipe, what a paper's table lists, is the method's own config (section `method`); networks, data, hardware and the
run folder are `TrainConfig`'s own fields. Where the values come from: `sources`; what is kept of them:
`record`. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from dfkd_fast.catalog import METHODS
from dfkd_fast.config.combinations import check_together
from dfkd_fast.config.data_sets import DATA_SETS
from dfkd_fast.config.own_networks import check_untrained, folder_name
from dfkd_fast.config.recipes import TeacherRecipe
from dfkd_fast.config.sections import (
    BnConfig,
    CheckpointConfig,
    EvalConfig,
    Hardware,
    LogConfig,
    NetworkInput,
    OptimConfig,
    PoolConfig,
)
from dfkd_fast.config.sections import (
    SavedNetworkInput as SavedNetworkInput,
)
from dfkd_fast.config.setting import setting, settings_of
from dfkd_fast.errors import UserError, unknown

M = TypeVar("M")

CONFIG_FILE = "config.toml"  # the merged config in a run folder


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Hardware, NetworkInput, Generic[M]):
    """Everything that decides a run. `M` is the method's config class."""

    method: M
    """the method's recipe"""
    data: str | None = None
    """real test images: `digits`, or a path (image folder, tar of one, CIFAR files); without it nothing is evaluated"""
    dataset: str = ""
    """name of the data in the run folder's name; without it taken from --data"""
    teacher: str = ""
    """network to distil from: a name of `dfkd-fast ls models`, zoo:NAME (published, with weights and card), tv:NAME
    (its first published weights, or others as tv:resnet50@IMAGENET1K_V2), timm:NAME, hf:FOLDER (transformers), FILE.pt2
    (torch.export), FILE.pt (TorchScript), or your own code, which is run, as FILE.py:NAME or package.module:NAME
    """
    teacher_args: tuple[str, ...] = setting((), formerly=())
    """arguments that your own teacher is built with, NAME=VALUE"""
    teacher_weights: Path | None = None
    """checkpoint of the teacher, safetensors or a torch.save that loads with weights_only"""
    teacher_weights_key: str | None = setting(None, formerly=None)
    """which of several networks in that file: the key of a dict (state_dict_ema), or the prefix of the names in one"""
    teacher_data: str = setting("", formerly="")
    """data set that the teacher was trained on: cifar10, cifar100, cinic, tiny-imagenet, imagenet, imagenette,
    imagewoof, ham10000, pathmnist, bloodmnist, pneumoniamnist, mnist, svhn; its convention and class names stand
    in for what neither flags nor file nor library say; without it the preset's
    """
    teacher_precision: Literal["same", "bf16", "fp16", "int8"] = setting("same", formerly="same")
    """numeric mode of the frozen teacher in a run in fp32; int8: of its answers in student steps alone, on a CPU, by
    onnxruntime (pip install dfkd-fast[int8]), in a run of any precision. Another than the run's changes its results
    """
    fold_teacher: bool = setting(False, formerly=False)
    """on a CPU, answer students with the teacher's BatchNorms folded into its weights; changes results by rounding"""
    cache_teacher_logits: int | Literal["auto"] = setting(0, at_least=0, formerly=0)
    """let the student see so many crops and flips of each image, answered by the teacher once and kept; 0: all of them,
    answered in each step; auto: 16, 8 or 0, as pays by a measurement before the start. Changes results
    """
    synthesis_micro_batches: int = setting(1, at_least=1, formerly=1)
    """parts that a synthesis batch is computed in, one after another, to save memory; batch statistics are each
    part's own, which changes results"""
    train_teacher: bool = False
    """first train the teacher on the training split of --data, by [teacher_recipe]; kept for the next run"""
    teacher_recipe: TeacherRecipe = field(default_factory=TeacherRecipe)
    """how --train-teacher trains"""
    student: str = ""
    """network to distil into, named as --teacher"""
    student_args: tuple[str, ...] = setting((), formerly=())
    """arguments that your own student is built with, NAME=VALUE"""
    collected: str | None = setting(None, formerly=None)
    """real images that take part in the training, for a method that is not strictly data-free: `digits`, or the
    path of a training split"""
    collected_share: float = setting(1.0, formerly=1.0)
    """share of each class of --collected that is taken; only that is decoded"""
    collected_memory: float = setting(4.0, above=0, formerly=4.0)
    """GiB of decoded images of --collected above which they are kept in a file of the cache and read batch by batch"""
    text: str = "orthogonal"
    """class vectors, for methods that take them: clip, sbert, class-index, orthogonal, one-hot, class-centre, or a
    .safetensors file (K, D); also written --label-embeddings"""
    prompt: str = "P2"
    """sentence that a text encoder is given: P1, P2, P3, released, or one with {name} or {index}; of a name with
    synonyms (tench, Tinca tinca) released takes all, the others the first"""
    text_model: str = ""
    """name or folder of the text encoder; without it CLIP ViT-B/32, or SBERT's all-MiniLM-L6-v2"""
    class_names: Path | None = None
    """file with a name for each class, one a line; without it those of --class-order FILE, or of the teacher's file,
    library or data set
    """
    seed: int = setting(0, at_least=0, at_most=2**63 - 1)
    """seed of everything random"""
    run_dir: Path | None = None
    """run folder; without it runs/<method>-<dataset>-<teacher>-<student>-s<seed>"""
    stop_after_epoch: int | None = setting(None, at_least=1)
    """stop at the end of this many epochs, to be resumed"""
    compile: Literal["off", "default", "max"] = "off"
    """torch.compile for the steps; max also tries several kernels for each operator, which takes minutes"""
    cuda_graphs: bool = True
    """on a GPU, capture each whole step once and replay it"""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """implementation of the optimisers"""
    pool: PoolConfig = field(default_factory=PoolConfig)
    """where synthetic images are kept"""
    eval: EvalConfig = field(default_factory=EvalConfig)
    """evaluation on real test images"""
    log: LogConfig = field(default_factory=LogConfig)
    """progress and image grids"""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """what a stopped run is taken up from"""
    bn: BnConfig = field(default_factory=BnConfig)
    """BatchNorm of networks in training"""

    @property
    def method_name(self) -> str:
        """The method's name in `catalog.METHODS`."""
        config = type(self.method)
        module, method = config.__module__, config.__name__.removesuffix("Config")
        beside = module.removesuffix(".config") + ".method"  # of a method's folder
        return next(name for name, known in METHODS.items() if known in (f"{module}:{method}", f"{beside}:{method}"))

    @property
    def dataset_name(self) -> str:
        """What the run folder calls the data."""
        if self.dataset or self.data is None:
            return self.dataset or "nodata"
        return Path(self.data).resolve().name.partition(".")[0]

    @property
    def run_folder(self) -> Path:
        """Where the run is written."""
        if self.run_dir is not None:
            return self.run_dir
        parts = (self.method_name, self.dataset_name, self.teacher, self.student, f"s{self.seed}")
        return Path("runs") / "-".join(map(folder_name, parts))

    def check(self) -> None:
        """Raise UserError for what no run can be made of."""
        for flag, name, zoo in (("--teacher", self.teacher, "zoo:NAME, "), ("--student", self.student, "")):
            if not name:
                others = f"{zoo}tv:NAME, timm:NAME or FILE.py:NAME"
                raise UserError(f"{flag}: missing; choose a name of `dfkd-fast ls models`, {others}")
        check_untrained(self.student, "--student")
        if self.train_teacher:
            check_untrained(self.teacher, "--teacher")
        check_values(self)
        check_teacher_data(self.teacher_data)
        values = dict(flatten(self))
        epochs, warmup = values["method.epochs"], values.get("method.warmup_epochs", 0)
        if warmup >= epochs:
            raise UserError(
                f"--method.warmup-epochs {warmup}: choose fewer than --method.epochs {epochs}, or no student is trained"
            )
        if values.get("method.student_ramp_share"):
            share = values["method.student_ramp_share"]
            if share >= 1:
                raise UserError(f"--method.student-ramp-share {share}: choose a share from 0 to below 1")
            if values["method.student_ramp_epochs"]:
                raise UserError(
                    f"--method.student-ramp-share {share}: give it or --method.student-ramp-epochs, not both"
                )
        check_together(values)
        self.method.check()  # type: ignore[attr-defined]
        if self.teacher.startswith("zoo:") and self.teacher_weights is not None:
            name = self.teacher.removeprefix("zoo:")
            raise UserError(f"--teacher-weights: --teacher {self.teacher} brings its own; choose --teacher {name}")
        if self.train_teacher and self.teacher_weights is not None:
            raise UserError("--train-teacher: leave it out where --teacher-weights brings a trained one")
        if self.train_teacher and self.data is None:
            raise UserError("--train-teacher: needs --data with a training split")


def check_values(config: Any) -> None:
    """Raise UserError for the first number of a config that nothing can be computed with, or name that no file has."""
    if isinstance(config, NetworkInput):
        _check_normalisation(config)
    if isinstance(config, TrainConfig):
        check_share(config.collected_share)
    for key, value, stated in settings_of(config):
        if isinstance(value, str | Path):
            _check_name(key, str(value))
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and (limit := stated.broken_by(number)):
                raise UserError(f"--{key.replace('_', '-')} {number}: choose {limit}")


def check_share(share: float) -> None:
    """Raise UserError for a share of the collected images that is none; counts may follow it before all is checked."""
    if not 0 < share <= 1:
        raise UserError(f"--collected-share {share}: choose a share above 0 and up to 1")


def _check_name(key: str, value: str) -> None:
    """A name must fit into config.toml, which is UTF-8, and into a file system, which ends names at a NUL."""
    setting = f"--{key.replace('_', '-')} {value}"
    if "\0" in value:
        raise UserError(f"{setting}: holds a NUL character, which no name can")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise UserError(f"{setting}: is no UTF-8, in which settings are kept; rename it, or link to it")


def check_teacher_data(name: str) -> None:
    """Raise UserError for a data set that has no convention here; "" is none."""
    if name and name not in DATA_SETS:
        raise unknown("--teacher-data", name, DATA_SETS)


def _check_normalisation(stated: NetworkInput) -> None:
    """Raise UserError for a mean and spread that are not those of pixels in [0, 1], one for each channel."""
    for flag, values, above in (("--mean", stated.mean, -1e-9), ("--std", stated.std, 0.0)):
        written = " ".join(map(str, values or ()))
        if values is not None and not (values and all(above < value <= 1 for value in values)):
            least = "above 0" if above == 0 else "0"
            raise UserError(f"{flag} {written}: choose numbers from {least} to 1, for pixels in [0, 1] (not 0 to 255)")
        if values is not None and stated.in_chans not in (None, len(values)):
            raise UserError(f"{flag} {written}: {len(values)} values for --in-chans {stated.in_chans}; give one each")
    if stated.mean and stated.std and len(stated.mean) != len(stated.std):
        raise UserError(f"--std: {len(stated.std)} values, but --mean has {len(stated.mean)}; give one each channel")


def flatten(config: Any) -> Iterator[tuple[str, Any]]:
    """Dotted key and value of every setting, `method.bn_weight` for one in a section."""
    return ((key, value) for key, value, _ in settings_of(config))
