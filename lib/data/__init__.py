"""Images with labels (slides 10, 22, 24, 25)."""

from lib.data._datasets import GRADES, OBJECTS, checksums, cifar10, digits, mnist, retina
from lib.data._downloads import DataError
from lib.data._images import Images, check_images
from lib.data._phantoms import LESIONS, Phantoms, fundus_phantoms

__all__ = [
    "GRADES",
    "LESIONS",
    "OBJECTS",
    "DataError",
    "Images",
    "Phantoms",
    "check_images",
    "checksums",
    "cifar10",
    "digits",
    "fundus_phantoms",
    "mnist",
    "retina",
]
