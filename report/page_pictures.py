"""The pictures of the page: test images with a broken bit and repaired, and what a net says to each of them."""

import base64
import io

import numpy as np
import torch
from PIL import Image

import datasets
from common import UserError, digest, first_line
from datasets import DATASETS, read_images
from engine import checkpoints, state_of, training_digest
from engine.batches import scale
from faults import Fault, faulty_images
from models.folded import Folded
from repairs import REPAIRS, fault_of, is_learned, repaired
from report.page_tables import best_repair, measured_repairs
from report.tables import label
from report.trainings import find_checkpoint

BITS = (7, 6, 5, 4)  # broken bits to choose from
FIRST = 2  # test images, as in images.png
SEARCHED = 100  # test images, from the first, among which those are looked for that a fault breaks and a repair mends
MENDED = {7: 6, 6: 6, 5: 6}  # number of these images for each broken bit
MENDED_LARGE = {7: 1, 6: 1, 5: 1}  # the same for images larger than LARGE, which take four times the space or more
LARGE = 32  # pixels a side
CLASSES = 3  # likeliest classes of each picture
NEIGHBOR = -1  # neighbor_offset of repaired_n


def pictures_of(sessions, data, workers):
    """([pictures of each data set], [a line on each data set without]) for all data sets of some sessions.

    data: folder of all data sets. Pictures: {"title", "session", "images"}, see _pictures.
    """
    shown, missing = [], []
    for dataset in dict.fromkeys(session.same["dataset"] for session in sessions):
        title = DATASETS[dataset].title
        own = [session for session in sessions if session.same["dataset"] == dataset]
        try:
            if not datasets.at_hand(dataset, data):
                raise UserError(f"the data set is not in {data}/" if _is_local(data) else "the data set is not at hand")
            shown.append({"title": title, **_pictures(own, dataset, data, workers)})
        except UserError as error:
            missing.append(f"No pictures of {title}: {first_line(error)}.")
    return shown, missing


def _is_local(data):
    return not data.startswith(("/", "~", "."))


def _pictures(sessions, dataset, data, workers):
    """{"session", "images": [{"title", "bits": {bit: …}}]} of one data set. UserError says why there are none."""
    images, labels = read_images(dataset, data, False, workers)
    session, net = _choose_net(sessions, digest(images, labels))
    names = datasets.class_names(dataset, data)
    images, labels = images[:SEARCHED], labels[:SEARCHED]
    seed = session.same["seed"]
    broken = {bit: faulty_images(Fault("random", bit, level=1.0), images, seed) for bit in BITS}
    state = _states(dataset, data, workers, large=images.shape[-1] > LARGE)
    chosen = _choose_images(session, net, images, labels, broken)
    numbers = [number for number, _, _ in chosen]
    repairs = measured_repairs(sessions)
    versions = {}
    for bit in BITS:
        found = _repaired(broken[bit][numbers], bit, repairs, state)
        versions[bit] = _versions({"clean": images[numbers], "faulty": broken[bit][numbers], **found}, net, names)
    shown = []
    for place, (number, bit, why) in enumerate(chosen):
        name = _named(names, labels[number].item())
        bits = {each: versions[each][place] for each in BITS}
        shown.append({"title": f"test image {number}, {name}: {why}", "label": name, "bit": bit, "bits": bits})
    return {"session": session.name, "size": images.shape[-1], "images": shown}


def _choose_net(sessions, found):
    """(Session, its net for evaluation): the one of most cells whose checkpoint and test images are at hand."""
    same_images = [session for session in sessions if session.same["images"] == found]
    if not same_images:
        raise UserError("the test images at hand are not those that the nets were measured on")
    for session in sorted(same_images, key=lambda session: (-len(session.cells), session.name)):
        checkpoint = find_checkpoint(session)
        if checkpoint:
            path, state = checkpoint
            _, net, _ = checkpoints.load_net(path)
            if net.wsconv == checkpoints.trained_as(path, state)["wsconv"]:
                return session, Folded(net)
    raise UserError("no checkpoint of a net that was measured is at hand")


def _states(dataset, data, workers, large):
    """A function (repair, bit) -> what it has learned, None if it learns nothing.

    That raises UserError if the repair has not learned yet, or the images are large: to recognise what was learned from
    them means to read all training images, which takes longer than the rest of the page.
    """

    found = {}  # {(function that learns, bit): what it has learned}; two repairs can share it

    def state(repair, bit):
        learn = REPAIRS[repair].learn
        if learn is None or (learn, bit) in found:
            return found.get((learn, bit))
        if large or not is_learned(repair, bit, dataset, training_digest(dataset, data, workers)):
            raise UserError(f"what {repair} has learned for bit {bit} is not at hand")
        found[learn, bit] = state_of(fault_of(repair, bit, NEIGHBOR), dataset, data, workers)
        return found[learn, bit]

    return state


def _choose_images(session, net, images, labels, broken):
    """[(number of a test image, bit to show first, why)]"""
    chosen = [(number, 6, "one of the first two") for number in range(min(FIRST, len(images)))]
    taken = set(range(FIRST))
    right = _classes(net, images) == labels
    for bit, number_wanted in (MENDED if images.shape[-1] <= LARGE else MENDED_LARGE).items():
        best = best_repair(session, bit, cheap=True)
        usable = best is not None and REPAIRS[best.fault.repair].learn is None
        fault = best.fault if usable else fault_of("median", bit, NEIGHBOR)
        mended = repaired(fault, broken[bit])
        found = right & (_classes(net, broken[bit]) != labels) & (_classes(net, mended) == labels)
        numbers = [number for number in found.nonzero().flatten().tolist() if number not in taken][:number_wanted]
        chosen += [(number, bit, f"bit {bit} breaks it, {label(fault)} mends it") for number in numbers]
        taken.update(numbers)
    return chosen


def _classes(net, images):
    """The likeliest class of each image; among equal logits the lower class."""
    return _logits(net, images).sort(dim=1, descending=True, stable=True).indices[:, 0]


@torch.inference_mode()
def _logits(net, images):
    return net(scale(images))


def _repaired(faulty, bit, repairs, state):
    """{label of a repair: the images after it}, for those of some repairs that are possible and have learned.

    faulty: uint8 N×3×H×W. repairs: {name: row of REPAIRS}. state: of _states.
    """
    found = {}
    for repair, row in repairs.items():
        if bit in row.cannot:
            continue
        fault = fault_of(repair, bit, NEIGHBOR)
        try:
            found[label(fault)] = repaired(fault, faulty, state(repair, bit))
        except UserError:  # what it has learned is not at hand
            continue
    return found


def _versions(found, net, names):
    """For each image {"strip": PNG of its versions, one below the other, "versions": [{"name", "classes"}]}.

    found: {name: images of this version, uint8 N×3×H×W}.
    """
    images = torch.stack(list(found.values()), 1)  # N×versions×3×H×W
    logits = _logits(net, images.flatten(0, 1)).view(*images.shape[:2], -1)
    shown = []
    for strip, own in zip(images, logits):
        versions = [{"name": name, "classes": _likeliest(each, names)} for name, each in zip(found, own)]
        shown.append({"strip": _png(strip), "versions": versions})
    return shown


def _likeliest(logits, names):
    """[[class, logit], …] of the likeliest classes, the likeliest first."""
    values, classes = logits.sort(descending=True, stable=True)
    return [[_named(names, c), round(v, 3)] for v, c in zip(values[:CLASSES].tolist(), classes[:CLASSES].tolist())]


def _named(names, number):
    return names[number] if number < len(names) else f"class {number}"


def _png(images):
    """Images (uint8 N×3×H×W), one below the other, as the URL of a PNG."""
    pixels = images.permute(0, 2, 3, 1).reshape(-1, images.shape[-1], 3).numpy()
    with io.BytesIO() as file:
        Image.fromarray(np.ascontiguousarray(pixels)).save(file, "png", optimize=True)
        return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
