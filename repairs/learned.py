"""What repairs have learned from clean training images, kept on disk beside the checkpoints."""

from pathlib import Path

import torch

from common import UserError, written_whole
from repairs.table import REPAIRS

FOLDER = Path("checkpoint/repairs")


def learned_state(repair, bit, dataset, training_images):
    """What a repair learns of a broken bit from the training images of a data set; None for repairs that learn nothing.

    Read from checkpoint/repairs/<dataset>_<repair>_<bit>.pt; learned and written where there is no such file. Delete
    the file to learn anew. training_images: () -> clean ones, uint8 N×3×H×W.
    """
    learn = REPAIRS[repair].learn
    if learn is None:
        return None
    repair = next(name for name, row in REPAIRS.items() if row.learn is learn)  # the first of those that share it
    path = FOLDER / f"{dataset}_{repair}_{bit}.pt"
    if not path.is_file():
        images = training_images()
        print(f"{path}: '{repair}' learns bit {bit} from training images of {dataset}, once", flush=True)
        with written_whole(path) as partial, open(partial, "wb") as file:
            torch.save(learn(images, bit), file)
    try:
        return torch.load(path, weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds
        raise UserError(
            f"{path} cannot be read ({str(error).splitlines()[0]}): delete it, and it is learned anew"
        ) from None
