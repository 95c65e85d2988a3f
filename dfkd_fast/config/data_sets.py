"""Facts about named data sets that teachers are trained on: classes, size, and what the field normalises them with.

A teacher that says nothing of itself is taken by its data set's convention where `--teacher-data`, or a preset's name,
says which that is. Real images are never asked. Literals and `wordnet.tsv`: `ls` and `--help` read this without torch.
"""

from __future__ import annotations

from typing import NamedTuple

from dfkd_fast.config.wordnet import wordnet_words


class DataSet(NamedTuple):
    """What the field agrees on for a data set; None where it does not."""

    num_classes: int
    image_size: int
    """side of the square images in pixels"""
    mean: tuple[float, ...] | None = None
    """of each channel, for pixels in [0, 1]"""
    std: tuple[float, ...] | None = None
    """of each channel, for pixels in [0, 1]"""
    class_names: tuple[str, ...] = ()
    """in the order of a teacher's outputs, as its folders are called (WordNet ids, HAM10000's codes; `class_names` has
    their words). Empty: ImageNet-1k, whose names torchvision lists, and what has none
    """


_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""

_DIGITS = tuple("0123456789")
_HAM10000 = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
_PATHMNIST = (
    *("adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle", "normal colon mucosa"),
    *("cancer-associated stroma", "colorectal adenocarcinoma epithelium"),
)
_BLOODMNIST = (
    *("basophil", "eosinophil", "erythroblast", "immature granulocyte", "lymphocyte"),
    *("monocyte", "neutrophil", "platelet"),
)

DATA_SETS: dict[str, DataSet] = {
    # std as the field's teachers were trained (the mean of each image's own spread); that of all pixels is 0.2470 ...
    "cifar10": DataSet(10, 32, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), _CIFAR10),
    "cifar100": DataSet(100, 32, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), tuple(_CIFAR100.split())),
    "tiny-imagenet": DataSet(200, 64, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), tuple(wordnet_words()["tiny-imagenet"])),
    "imagenette": DataSet(10, 224, *_IMAGENET, tuple(wordnet_words()["imagenette"])),
    "imagewoof": DataSet(10, 224, *_IMAGENET, tuple(wordnet_words()["imagewoof"])),
    "imagenet": DataSet(1000, 224, *_IMAGENET),
    "digits": DataSet(10, 32, class_names=_DIGITS),
    "mnist": DataSet(10, 28, class_names=_DIGITS),
    "svhn": DataSet(10, 32, class_names=_DIGITS),
    "cinic": DataSet(10, 32, class_names=_CIFAR10),
    "ham10000": DataSet(7, 224, class_names=_HAM10000),
    "pathmnist": DataSet(9, 28, class_names=_PATHMNIST),
    "bloodmnist": DataSet(8, 28, class_names=_BLOODMNIST),
    "pneumoniamnist": DataSet(2, 28, class_names=("normal", "pneumonia")),
}


def data_set_of(preset: str) -> str:
    """The data set that a preset's name begins with; "" where it is none of `DATA_SETS`."""
    return next((name for name in DATA_SETS if preset == name or preset.startswith(f"{name}-")), "")
