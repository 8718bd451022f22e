"""The training loop: it learns, it resumes bit for bit, it leaves bad steps out."""

from __future__ import annotations

import dataclasses
import json
import signal
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from s2d.data.clips import AnnotatedFrames, ClipSettings
from s2d.data.memory_loader import MemoryLoader
from s2d.errors import InputError
from s2d.models import VideoMask2Former
from s2d.ops import pack_masks
from s2d.testing.small_model import SMALL
from s2d.training import parts
from s2d.training.recipe import Recipe
from s2d.training.settings import (
    ExecutionSettings,
    LossSettings,
    OptimizerSettings,
    RoundSettings,
    TeacherSettings,
)
from s2d.training.trainer import Trainer


class StandIn(nn.Module):
    """The interface of VideoMask2Former with the least inside: two queries on a small convolution, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_queries=2)
        self.backbone = nn.Conv2d(3, 8, 5, stride=4, padding=2)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Conv2d(8, 2, 1)
        self.scores = nn.Linear(8, 2)
        self.seen: list[Tensor | None] = []

    def forward(self, clip: Tensor, frame_keep: Tensor | None = None) -> dict:
        self.seen.append(frame_keep)
        height, width = clip.shape[-2:]
        frames = F.pad(clip.flatten(0, 1) / 127.5 - 1, (0, -width % 32, 0, -height % 32))
        features = self.dropout(self.backbone(frames).relu())
        masks = self.head(features).unflatten(0, clip.shape[:2]).transpose(1, 2)
        state = features.unflatten(0, clip.shape[:2]).mean((1, 3, 4))
        logits = self.scores(state)[:, None].expand(-1, 2, -1)
        return {
            "pred_logits": logits,
            "pred_masks": masks,
            "aux_outputs": [{"pred_logits": logits, "pred_masks": masks}],
        }


def recipe(**changes) -> Recipe:
    return Recipe(
        name="test",
        checkpoint_every=4,
        clips=ClipSettings(frames=2, batch=2, consecutive=0.5, crop=(0.8, 1.0), rotation=0.0, rotation_jitter=0.0),
        loss=LossSettings(num_points=64, label_drop=0.1, frame_drop=0.5),
        teacher=TeacherSettings(momentum=0.9, threshold=0.3),
        optimizer=OptimizerSettings(learning_rate=0.02, backbone_multiplier=1.0, warmup=2, clip_norm=5.0),
        rounds=(RoundSettings("sparse", "keymasks", 10, distill_from=5), RoundSettings("dense", "predictions", 6)),
    ) if not changes else dataclasses.replace(recipe(), **changes)  # fmt: skip


def bright_square() -> AnnotatedFrames:
    """A bright square that wanders over a dark ground, annotated in three of six frames."""
    frames = torch.full((6, 3, 30, 44), 20, dtype=torch.uint8)
    masks = torch.zeros(1, 6, 30, 44, dtype=torch.bool)
    for t in range(6):
        masks[0, t, 6:20, 3 + 4 * t : 17 + 4 * t] = True
        frames[t, :, masks[0, t]] = 230
    keep = torch.tensor([[True, False, True, False, False, True]])
    return AnnotatedFrames(frames, torch.arange(6), pack_masks(masks & keep[..., None, None]), keep, keep.float())


def run(work=None, chosen: Recipe | None = None, seed: int = 0) -> Trainer:
    torch.manual_seed(seed)
    made = Trainer(StandIn(), chosen or recipe(), work=work)
    while made.round < len(made.recipe.rounds):
        made.train(feed(made.recipe), progress=False)
    return made


def feed(chosen: Recipe) -> MemoryLoader:
    return MemoryLoader([bright_square()], chosen.clips, seed=chosen.seed)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_it_learns_the_frames_that_nobody_annotated():
    chosen = recipe(rounds=(RoundSettings("sparse", "keymasks", 80),))
    data = bright_square()
    model = run(chosen=chosen).teacher.model
    with torch.no_grad():
        masks = model(data.frames[None])["pred_masks"]
    dense = F.interpolate(masks[0], size=(32, 64), mode="bilinear")[..., :30, :44] > 0
    truth = data.frames[:, 0] > 100
    iou = (dense & truth).sum((1, 2, 3)) / (dense | truth).sum((1, 2, 3))
    assert iou.max() > 0.7


@pytest.mark.parametrize("stop", [1, 6, 9, 12, 15])
def test_interrupted_and_resumed_is_the_same_bit_for_bit(tmp_path, monkeypatch, stop):
    whole = run()
    steps = 0
    draw = parts.drop_labels

    def interrupting(*arguments):
        nonlocal steps
        steps += 1
        if steps == 2 * stop:
            signal.raise_signal(signal.SIGINT)
        return draw(*arguments)

    monkeypatch.setattr(parts, "drop_labels", interrupting)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    monkeypatch.undo()
    resumed = run(tmp_path, seed=5)
    assert same(whole.teacher.model, resumed.teacher.model)
    entries = [json.loads(line) for line in (tmp_path / "training.jsonl").read_text().splitlines()]
    assert [(e["round"], e["step"]) for e in entries] == [(0, s) for s in range(10)] + [(1, s) for s in range(6)]
    assert all(torch.isfinite(torch.tensor(e["loss"])) for e in entries)


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path, monkeypatch):
    whole = run()
    taken = Trainer._one_step
    monkeypatch.setattr(Trainer, "_one_step", lambda self, *a: 1 / 0 if self.step == 7 else taken(self, *a))
    with pytest.raises(ZeroDivisionError):
        run(tmp_path)
    monkeypatch.undo()
    assert torch.load(tmp_path / "training.pt", weights_only=True)["step"] == 4
    assert same(whole.teacher.model, run(tmp_path, seed=9).teacher.model)


def test_a_finished_run_does_nothing_more(tmp_path, monkeypatch):
    finished = run(tmp_path)
    monkeypatch.setattr(Trainer, "_one_step", lambda *a: 1 / 0)
    assert same(finished.teacher.model, run(tmp_path, seed=3).teacher.model)


def test_the_callers_random_state_and_ctrl_c_are_left_alone():
    before = signal.getsignal(signal.SIGINT)
    torch.manual_seed(7)
    made = Trainer(StandIn(), recipe())
    state = torch.get_rng_state()
    made.train(feed(made.recipe), progress=False)
    assert torch.equal(state, torch.get_rng_state())
    assert signal.getsignal(signal.SIGINT) is before


def test_a_step_that_is_not_finite_is_left_out_and_counted(tmp_path):
    torch.manual_seed(0)
    made = Trainer(StandIn(), recipe(), work=tmp_path)
    weights = {name: tensor.clone() for name, tensor in made.student.state_dict().items()}
    forward, calls = made.student.forward, 0

    def poisoned(*arguments):
        nonlocal calls
        calls += 1
        outputs = forward(*arguments)
        if calls in (3, 4):
            outputs["pred_masks"] = outputs["pred_masks"] * float("nan")
        return outputs

    made.student.forward = poisoned
    made.train(feed(made.recipe), progress=False)
    assert made.skipped == 2
    entries = [json.loads(line) for line in (tmp_path / "training.jsonl").read_text().splitlines()]
    assert [e["step"] for e in entries if e["skipped"]] == [2, 3]
    final = made.teacher.model.state_dict()
    assert all(tensor.isfinite().all() for tensor in final.values())
    assert not torch.equal(final["head.weight"], weights["head.weight"])


def test_another_recipe_is_refused(tmp_path):
    run(tmp_path)
    with pytest.raises(InputError, match="same recipe on the same keymasks"):
        run(tmp_path, recipe(seed=1))


def test_the_student_alone_loses_frames():
    torch.manual_seed(0)
    made = Trainer(StandIn(), recipe())
    made.train(feed(made.recipe), progress=False)
    assert all(keep is not None and keep.any(1).all() for keep in made.student.seen)
    assert not all(keep.all() for keep in made.student.seen)
    assert made.teacher.model.seen == [None] * 5


def trained(model: nn.Module, chosen: Recipe, **options) -> Trainer:
    made = Trainer(model, chosen, **options)
    while made.round < len(chosen.rounds):
        made.train(feed(chosen), progress=False)
    return made


def gradients(**execution) -> dict[str, Tensor]:
    """Of one step of the real model, without dropout: only rounding can differ."""
    torch.manual_seed(0)
    chosen = recipe(
        clips=dataclasses.replace(recipe().clips, batch=4),
        rounds=(RoundSettings("sparse", "keymasks", 3, distill_from=0),),
        execution=ExecutionSettings(**execution),
    )
    made = Trainer(VideoMask2Former(dataclasses.replace(SMALL, encoder_dropout=0.0)), chosen)
    with tqdm(disable=True) as bar:
        made._one_step(next(feed(chosen).batches(0)), bar, [])
    return {name: parameter.grad for name, parameter in made.student.named_parameters()}


@pytest.mark.parametrize(
    ("execution", "tolerance"),
    [
        ({"micro_batch": 1}, 1e-4),
        ({"micro_batch": 3}, 1e-4),
        ({"checkpointing": True}, 0.0),
        pytest.param(
            {"precision": "bf16"},
            0.2,
            marks=pytest.mark.skipif(
                not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU does not compute in bfloat16"
            ),
        ),
    ],
)
def test_how_it_is_computed_does_not_change_what(execution, tolerance):
    plain, other = gradients(), gradients(**execution)
    assert plain.keys() == other.keys()
    for name, gradient in plain.items():
        assert (gradient - other[name]).norm() <= tolerance * gradient.norm() + 1e-7, name


def test_nothing_waits_for_the_device_but_the_assignment(monkeypatch):
    """Between the student's forward pass and the optimizer's step, values leave the device once a part.

    What decisions are taken by (`ClipTargets.keep`, boolean) is on the CPU whatever the device is; the rest is on it.
    """
    waits: list[str] = []
    watching = False

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, arguments=(), options=None):
            name, leaves = operator.overloadpacket.__name__, tree_leaves(arguments)
            numbers = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.dtype != torch.bool]
            by_mask = name == "index" and any(i is not None and i.dtype == torch.bool for i in arguments[1])
            if watching and numbers and (by_mask or name in ("_local_scalar_dense", "nonzero", "masked_select")):
                waits.append(name)
            return operator(*arguments, **(options or {}))

    def watched(name: str) -> None:
        original = getattr(Tensor, name)
        monkeypatch.setattr(Tensor, name, lambda self: (watching and waits.append(name), original(self))[1])

    made = Trainer(StandIn(), recipe(execution=ExecutionSettings(micro_batch=1)))
    forward, step = made.student.forward, made.optimizer.step

    def start(*arguments):
        nonlocal watching
        watching = True
        return forward(*arguments)

    def stop(*arguments, **options):
        nonlocal watching
        result = step(*arguments, **options)
        watching = False
        return result

    for name in ("cpu", "tolist"):
        watched(name)
    made.student.forward, made.optimizer.step = start, stop
    batch = next(feed(made.recipe).batches(0))
    with Watch(), tqdm(disable=True) as bar:
        made._one_step(batch, bar, [])
    assert waits == ["cpu", "cpu"], "one assignment for each of two parts"


def test_events_are_written_for_tensorboard(tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    chosen = recipe(rounds=(RoundSettings("sparse", "keymasks", 3),))
    trained(StandIn(), chosen, work=tmp_path / "work", log=tmp_path / "log", tensorboard=True)
    events = EventAccumulator(str(tmp_path / "log/tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss/mask")] == [0, 1, 2]


def test_tensorboard_that_is_not_there_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("s2d.training.log.find_spec", lambda name: None)
    with pytest.raises(InputError, match="TensorBoard to be installed"):
        Trainer(StandIn(), recipe(), work=tmp_path, tensorboard=True)
