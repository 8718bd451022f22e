"""A drop-in for ``pycocotools.mask``."""

from s2d import _native

_rle = _native.host().rle

encode = _rle.encode
decode = _rle.decode
area = _rle.area
toBbox = _rle.toBbox
merge = _rle.merge
iou = _rle.iou
frPyObjects = _rle.frPyObjects
