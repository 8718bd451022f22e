"""What is evaluated, from the forms that people have it in."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from s2d.data.davis import LabelledSequence, read_sequence
from s2d.data.files import read_json
from s2d.data.image_folder import list_images
from s2d.data.types import Tracks
from s2d.data.ytvis import read_ytvis, video_name, ytvis_dict
from s2d.errors import InputError
from s2d.metrics import COCO, YTVOS
from s2d.ops import RLE, BitMasks, rle_encode

# Proposals of a sequence that DAVIS-2017 unsupervised allows.
MOST_PROPOSALS = 20


def read_tracks(path: Path) -> list[Tracks]:
    """Tracks from a YTVIS json, from a folder that `s2d run` wrote, or from a folder of such folders.

    Raises:
        InputError: nothing of that kind is there.
    """
    if not path.is_dir():
        return read_ytvis(path)
    files = [path / "tracks.json"] if (path / "tracks.json").is_file() else sorted(path.glob("*/tracks.json"))
    if not files:
        raise InputError(f"expected a json of tracks or a folder with tracks.json at {path}, got a folder without one")
    return [tracks for file in files for tracks in read_ytvis(file)]


def read_truth(source: Path | Sequence[Tracks], metric: str, video: str | None = None) -> COCO | YTVOS:
    """Ground truth of AP: a COCO or YTVIS json, a folder of sequences of label maps, or tracks.

    Args:
        metric: "coco" or "ytvis".
        video: name of the one video that is evaluated.
    """
    if metric == "coco":
        return COCO(source)
    truth = YTVOS(source) if isinstance(source, Path) and not source.is_dir() else YTVOS(_tracks_dict(source))
    if video is None:
        return truth
    chosen = [item for item in truth.vids.values() if video_name(item, str(item["id"])) == video]
    if not chosen:
        names = listed([video_name(item, str(item["id"])) for item in truth.vids.values()])
        raise InputError(f"expected a video of the ground truth ({names}), got {video!r}")
    annotations = [a for a in truth.anns.values() if a["video_id"] == chosen[0]["id"]]
    return YTVOS({**truth.dataset, "videos": chosen, "annotations": annotations})


def read_results(source: Path | Sequence[Tracks], truth: COCO | YTVOS, *, classes: bool) -> COCO | YTVOS:
    """Predictions for ground truth: a json of results, a json of videos and annotations, folders of runs or of
    sequences of label maps, or tracks; videos are found by name where there are no ids of the truth's own.

    Raises:
        InputError: an unknown video, image or category, or what `loadRes` refuses.
    """
    data = read_json(source) if isinstance(source, Path) and not source.is_dir() else _tracks_dict(source)
    name = str(source) if isinstance(source, Path) else "the predictions"
    results = data if isinstance(data, list) else _results_of_videos(data, truth, name)
    if not all(isinstance(result, dict) for result in results):
        raise InputError(f"expected a list of results in {name}, got another kind of json")
    known = set(truth.getCatIds())
    for number, result in enumerate(results, 1):
        if result.get("category_id") in known:
            continue
        if classes:
            found = result.get("category_id")
            raise InputError(
                f"expected category_id of result {number} in {name} to be one of the truth's, got {found!r}"
            )
        results[number - 1] = {**result, "category_id": min(known, default=1)}
    return truth.loadRes(results)


def _results_of_videos(data: Any, truth: COCO | YTVOS, name: str) -> list[dict]:
    """The annotations of a whole YTVIS json with the ids of the truth's videos."""
    if not isinstance(truth, YTVOS) or not isinstance(data, dict) or not isinstance(data.get("videos"), list):
        raise InputError(f"expected a list of results in {name}, got another kind of json")
    theirs = YTVOS(data)
    ids: dict[str, Any] = {video_name(video, str(video["id"])): video["id"] for video in truth.vids.values()}
    alone = len(theirs.vids) == len(truth.vids) == 1
    places = {}
    for video in theirs.vids.values():
        own = video_name(video, str(video["id"]))
        if own not in ids and not alone:
            raise InputError(f"expected predictions for videos of the ground truth ({listed(list(ids))}), got {own!r}")
        places[video["id"]] = next(iter(ids.values())) if alone else ids[own]
    if len(set(places.values())) < len(places):
        raise InputError(f"expected one set of predictions for each video in {name}, got several of one")
    # A file of ours gives every instance a score; of ground truth taken as predictions all are as good.
    return [
        {"score": 1.0, **annotation, "video_id": places[annotation["video_id"]]} for annotation in theirs.anns.values()
    ]


def _tracks_dict(source: Path | Sequence[Tracks]) -> dict[str, Any]:
    if not isinstance(source, Path):
        return ytvis_dict(source)
    folders = _sequence_folders(source)
    if folders:
        return ytvis_dict([read_sequence(folder).tracks for folder in folders])
    return ytvis_dict(read_tracks(source))


def _sequence_folders(path: Path) -> list[Path]:
    """The folders with label maps: this one, or those in it."""
    if not path.is_dir():
        return []
    if list_images(path, (".png",)):
        return [path]
    return [folder for folder in sorted(path.iterdir()) if folder.is_dir() and list_images(folder, (".png",))]


def read_sequences(
    truth: Path | Sequence[Tracks],
    predictions: Path | Sequence[Tracks],
    *,
    assign: bool,
    single: bool,
    video: str | None = None,
) -> list[tuple[LabelledSequence, LabelledSequence]]:
    """Pairs (predictions, ground truth) of DAVIS sequences: label maps, YTVIS json, folders of runs or tracks.

    Of tracks that overlap the one with the higher score is seen, and the 20 best are kept for ``assign``.

    Raises:
        InputError: an unknown sequence, one without predictions, or what `read_sequence` refuses.
    """
    wanted = _read_side(truth, single)
    if video is not None:
        wanted = {name: sequence for name, sequence in wanted.items() if name == video}
    if not wanted:
        raise InputError(
            f"expected sequences with ground truth in {truth}, got none" + (f" named {video!r}" if video else "")
        )
    folders = (
        {folder.name: folder for folder in _sequence_folders(predictions)} if isinstance(predictions, Path) else {}
    )
    found = {} if folders else _read_side(predictions, single)
    names = list(folders or found)
    if len(names) == len(wanted) == 1:
        names = list(wanted)
        folders = dict.fromkeys(wanted, *folders.values()) if folders else {}
        found = dict.fromkeys(wanted, *found.values()) if found else {}
    unknown = [name for name in names if name not in wanted] if video is None else []
    if unknown:
        raise InputError(
            f"expected predictions for sequences of the ground truth ({listed(list(wanted))}), got {unknown[0]!r}"
        )
    pairs = []
    for name, true in wanted.items():
        if name not in names:
            raise InputError(f"expected predictions for sequence {name!r}, got none")
        most = None if single else MOST_PROPOSALS if assign else len(true.tracks)
        if folders:
            ends = () if assign else (true.frames[0], true.frames[-1])
            own = read_sequence(folders[name], like=true, most=most, single=single, optional=ends)
        else:
            own = found[name]
            tracks, where = own.tracks, f"sequence {name!r}"
            if (tracks.num_frames, *tracks.size) != (true.tracks.num_frames, *true.tracks.size):
                expected, got = ((t.num_frames, *t.size) for t in (true.tracks, tracks))
                raise InputError(f"expected frames, height and width {expected} of {where}, got {got}")
            own = dataclasses.replace(own, tracks=_kept(tracks, MOST_PROPOSALS if assign else None))
            if not assign and len(tracks) > len(true.tracks):
                raise InputError(f"expected at most {len(true.tracks)} tracks of {where}, got {len(tracks)}")
        pairs.append((own, true))
    return pairs


def _read_side(source: Path | Sequence[Tracks], single: bool) -> dict[str, LabelledSequence]:
    folders = _sequence_folders(source) if isinstance(source, Path) else []
    if folders:
        return {folder.name: read_sequence(folder, single=single) for folder in folders}
    tracks = read_tracks(source) if isinstance(source, Path) else source
    return {
        item.video: LabelledSequence(
            _merged(item) if single else _disjoint(item),
            RLE.empty(item.num_frames, *item.size),
            tuple(f"{t:05d}" for t in range(item.num_frames)),
        )
        for item in tracks
    }


def _kept(tracks: Tracks, most: int | None) -> Tracks:
    """The best ones in their order."""
    if most is None or len(tracks) <= most:
        return tracks
    best = torch.argsort(tracks.scores, descending=True, stable=True)[:most].sort().values
    places = torch.arange(tracks.annotated.numel()).view(tracks.annotated.shape)[best].reshape(-1)
    return dataclasses.replace(
        tracks, rle=tracks.rle[places], annotated=tracks.annotated[best], scores=tracks.scores[best]
    )


def _disjoint(tracks: Tracks) -> Tracks:
    """Every pixel to the track with the highest score (ties: the earlier one), as label maps have it."""
    order = torch.argsort(tracks.scores, descending=True, stable=True).tolist()
    codes = [tracks.rle[0:0]] * len(tracks)
    parts: list[list[RLE]] = [[] for _ in order]
    for t in range(tracks.num_frames):
        words = tracks.bits(slice(t, t + 1)).words[:, 0].clone()
        taken = torch.zeros_like(words[0]) if len(words) else None
        for n in order:
            words[n] &= ~taken
            taken |= words[n]
            parts[n].append(rle_encode(BitMasks(words[n : n + 1], tracks.size[1])))
    codes = [code for own in parts for code in own]
    return dataclasses.replace(tracks, rle=RLE.cat(codes) if codes else tracks.rle)


def _merged(tracks: Tracks) -> Tracks:
    """All tracks as one."""
    if not len(tracks):
        return tracks
    words = tracks.bits().words
    union = words[0].clone()
    for other in words[1:]:
        union |= other
    rle = rle_encode(BitMasks(union, tracks.size[1]))
    return dataclasses.replace(tracks, rle=rle, annotated=tracks.annotated.any(0, keepdim=True), scores=torch.ones(1))


def listed(names: list[str]) -> str:
    """The first few of some names, and how many more there are."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
