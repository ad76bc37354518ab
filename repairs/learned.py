"""What repairs learn from clean training images, stored beside the checkpoints."""

import io
from pathlib import Path

import torch

from common import UserError, code_digest, content_digest, digest, first_line, locked, write_bytes
from faults import break_cells, broken_map, faulty_images, flip_cells, in_planes
from models import teachers
from repairs.codes import PROTECTIONS, rotations
from repairs.table import REPAIRS

FOLDER = Path("checkpoint/repairs")


def _path_of(repair, bit, dataset, images_digest):
    learn = REPAIRS[repair].learn
    name = next(name for name, row in REPAIRS.items() if row.learn is learn)  # repairs with one `learn` share a file
    code = code_digest(*(row.learn for row in _lessons(repair)))
    learned_by = digest(images_digest.encode(), code.encode(), _teacher_digest(repair, dataset))[:8]
    return FOLDER / f"{dataset}_{name}_{bit}_{learned_by}.pt"


def _lessons(repair):
    """The rows of REPAIRS that learn, one after the other, for a repair: its own, after that of what it starts from."""
    row = REPAIRS[repair]
    before = _lessons(row.starts_from) if row.starts_from else []
    return [*before, row] if row.learn else before


def _teacher_digest(repair, dataset):
    """Digest of the teacher's file, as bytes; none if the repair is not taught."""
    return (_teacher_of(dataset)[1] if any(row.taught for row in _lessons(repair)) else "").encode()


def _teacher_of(dataset):
    """(Teacher, digest of its file). UserError if it cannot be loaded."""
    return teachers.load(teachers.path_of(dataset))


def is_learned(repair, bit, dataset, images_digest):
    """True if a repair learns nothing, or learned_state would find what it has learned. Arguments: as there."""
    if REPAIRS[repair].learn is None:
        return True
    try:
        return _path_of(repair, bit, dataset, images_digest).is_file()
    except UserError:  # it learns from a teacher that is not there
        return False


def learned_state(repair, bit, dataset, images_digest, training_images):
    """The state that a repair learns for a broken bit from the training images of a data set; None if it learns none.

    Read from checkpoint/repairs/<dataset>_<repair>_<bit>_<digest>.pt. The digest is of the images and of the code that
    learns, and of the teacher if the repair has one. If there is no such file, the state is learned and written there,
    by one process at a time. UserError if it cannot be read or written, or if there is no teacher.
    images_digest: of the training images. training_images: function that returns the clean ones, uint8 N×3×H×W.
    """
    if REPAIRS[repair].learn is None:
        return None
    path = _path_of(repair, bit, dataset, images_digest)
    if not path.is_file():
        with locked(path, path, wait=True):
            if not path.is_file():
                _learn(repair, bit, dataset, images_digest, training_images, path)
    try:
        found = torch.load(path, weights_only=True)
        if content_digest(found["state"]) != found["sha256"]:
            raise ValueError("its content is not what was written")
        return found["state"]
    except Exception as error:  # torch.load raises many kinds
        raise UserError(f"{path} cannot be read: delete it, and it is learned anew ({first_line(error)})") from None


def _learn(repair, bit, dataset, images_digest, training_images, path):
    """Learns a state, and writes it to `path`. Arguments as for learned_state."""
    row, images, given = REPAIRS[repair], training_images(), []
    if row.taught:
        teacher, _ = _teacher_of(dataset)
        if images.shape[-1] != teacher.size:
            raise UserError(
                f"{teachers.path_of(dataset)} is for images of {teacher.size}×{teacher.size} pixels, not "
                f"{images.shape[-2]}×{images.shape[-1]}: train_teacher.py trains one for these"
            )
        given = [teacher]
    if row.starts_from:
        given = [learned_state(row.starts_from, bit, dataset, images_digest, lambda: images), *given]
    print(f"{path}: '{repair}' learns bit {bit} from training images of {dataset}, once", flush=True)
    state, buffer = row.learn(images, bit, *given), io.BytesIO()
    torch.save({"state": state, "sha256": content_digest(state)}, buffer)
    write_bytes(path, buffer.getbuffer())


def made_by(repair, dataset, images_digest):
    """A digest of what determines the images under an image fault: code, and what the repair learns from.

    repair: a name in REPAIRS, or None. images_digest: of the training images of the data set; used by repairs that
    learn.
    """
    if repair is None:
        return code_digest(faulty_images)
    row = REPAIRS[repair]
    functions = [faulty_images, row.mend, *(each.learn for each in _lessons(repair))]
    learned_from = (images_digest if row.learn else "").encode()
    return digest(code_digest(*functions).encode(), learned_from, _teacher_digest(repair, dataset))


def made_by_cells(repair, protection, known):
    """The same for a fault of cells of the image memory: repair, protection and known of its Fault."""
    functions = [REPAIRS[repair].masked] if repair else []
    if protection:
        row = PROTECTIONS[protection]
        placed = [broken_map, rotations, in_planes] if row.rotates else [in_planes] if row.safe else []
        code = code_digest(flip_cells, row.encode, row.decode, *placed, *functions)
        return digest(code.encode(), bytes([row.safe]))
    return code_digest(break_cells, *functions, *([broken_map] if known else []))
