"""Packed checkpoints: written with a text that describes them, if the packed net scores as before."""

from hashlib import sha256

from common import UserError, write_text, written_whole
from datasets import DATASETS
from engine import checkpoints
from engine.evaluation import evaluate
from models.folded import Folded


def describe(path, state, score, which, about):
    """The text of the file that describes a packed checkpoint. score: on the images that `which` names."""
    options = state["options"]
    return (
        f"file      {path.name}\n"
        f"sha256    {sha256(path.read_bytes()).hexdigest()}\n"
        f"data set  {DATASETS[options['dataset']].title}\n"
        f"accuracy  {score.top1:.3f} % top-1, {score.top5:.3f} % top-5 on {score.n} {which} images, "
        f"after epoch {state['epoch']}\n"
        f"recipe    {' '.join(f'{key}={value}' for key, value in options.items())}\n"
        f"about     {about}\n"
        f"packed from a checkpoint whose sha256 begins with {state['packed_from']}\n"
    )


def pack(source, loaded, batches, which, about):
    """Write the packed file of the checkpoint `source`, and its description beside it. Returns the description.

    loaded: what checkpoints.load_net(source) returned. batches: clean images; which: test or held-out. about: a line
    for the description. UserError if the packed net does not score on them exactly as the net itself.
    """
    (_, net, state), path = loaded, checkpoints.packed_path(source)
    score = evaluate(Folded(net), batches)
    packed = checkpoints.pack(net, state, source.read_bytes())
    with written_whole(path) as partial:
        checkpoints.write(partial, packed)
        _, again, _ = checkpoints.load_net(partial)
        if evaluate(Folded(again), batches) != score:
            raise UserError(f"{path} is not written: packed, the net does not score as before")
    text = describe(path, packed, score, which, about)
    write_text(path.with_suffix(".txt"), text)
    return text
