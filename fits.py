"""What repairs learn from clean training images, kept on disk: results/fitted/<dataset>_<repair>_<bit>.pt."""

from pathlib import Path

import torch

from cli import UserError
from faults import REPAIRS
from files import write_whole

FOLDER = Path("results/fitted")


def fitted(repair, bit, dataset, training_images):
    """What the `fit` of a repair gives on the training images of a data set; None where it has none.

    Taken from its file; made, and the file written, where there is none. Delete the file to fit anew.
    training_images: () -> clean ones, uint8 N×3×H×W.
    """
    fit = REPAIRS[repair].fit
    if fit is None:
        return None
    repair = next(name for name, row in REPAIRS.items() if row.fit is fit)  # the first of those that share it
    path = FOLDER / f"{dataset}_{repair}_{bit}.pt"
    if not path.is_file():
        images = training_images()
        print(f"{path}: '{repair}' learns bit {bit} from training images of {dataset}, once", flush=True)
        result = fit(images, bit)
        write_whole(path, lambda file: torch.save(result, file))
    try:
        return torch.load(path, weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds
        raise UserError(
            f"{path} cannot be read ({str(error).splitlines()[0]}): delete it, and it is made anew"
        ) from None
