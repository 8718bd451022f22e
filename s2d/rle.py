"""A drop-in for ``pycocotools.mask``: ``import s2d.rle as mask_util``.

`encode`, `decode`, `area`, `toBbox`, `merge`, `iou` and `frPyObjects` have pycocotools' names, arguments, return types,
dtypes and memory order; strings are byte-identical, masks and IoU bit-identical. Nothing here makes a tensor.

``same`` is pycocotools 2.0.11; a row says what is better where a mask of its input cannot be had or is not one.

=====================================================  ===========================================  ==================
behaviour                                              pycocotools                                  here
=====================================================  ===========================================  ==================
codes are ``{"size": [H, W], "counts": bytes}``        ints in a list, bytes                        same
``encode`` of ``[H, W]``, ``[H, W, N]``, others        one code, a list, None                       same
``encode`` of uint8 and bool                           taken                                        same
``encode`` of other dtypes, of C order                 ValueError                                   same
``encode`` of values that are not 0 or 1               a run ends at every change of the value      better: any
                                                                                                    non-zero is set
``decode``, ``area``, ``toBbox`` of a list, of one     one more axis for a list                     same
``decode``                                             uint8, Fortran order, writable               same
``decode([])``                                         an array of a random shape                   better: [0, 0, 0]
``decode`` of sizes that differ                        masks shifted, garbage or ValueError         better: ValueError
``area``                                               uint32; OverflowError above 255 masks        better: any number
``toBbox``                                             float64 ``[N, 4]``; zeros for no pixel       same
runs of no pixels within a code: ``toBbox``            counted as pixels                            better: tight box
runs of no pixels within codes: ``merge``              kept                                         better: left out,
                                                                                                    the mask is the same
``merge``                                              union, or intersection where ``intersect``   same
``merge`` of one code                                  its runs as they are                         same
``merge`` of no code, of sizes that differ             size [0, 0], no runs                         same
``iou``                                                float64 ``[N, M]``, Fortran order            same
``iou`` where one side is empty                        an empty list                                same
``iou`` with crowd: any flag not 0                     divided by the area of ``dt``                same
``iou`` flags: list, tuple, array of any number type   cut to uint8 as numpy does                   same
``iou`` with more or fewer flags than ``gt``           AssertionError                               better: ValueError
``iou`` of codes whose sizes differ                    -1 where their boxes meet, else 0            same
``iou`` of boxes: list of lists or arrays, array       float64                                      same
``iou`` of boxes in Fortran order, strided             numbers of other boxes                       better: as they are
``iou`` of boxes with NaN                              as C's fmin and fmax                         same
``iou`` of codes against boxes, of tuples              Exception                                    TypeError or
                                                                                                    ValueError
``frPyObjects`` of polygons: lists, tuples, arrays     codes, upsampled by 5                        same
``frPyObjects`` of an array of boxes                   codes                                        same
``frPyObjects`` of boxes in other orders, dtypes       other boxes, ValueError                      better: as they are
``frPyObjects`` of a list of boxes, of one polygon,    TypeError (its documentation has them)       better: codes
of one box
``frPyObjects`` of uncompressed codes, of one          their own size, ``h`` and ``w`` ignored      same
``frPyObjects`` of compressed codes                    ValueError                                   better: as they are
``frPyObjects`` of an empty list                       IndexError                                   same
``frPyObjects`` into a mask without columns            runs that do not add up to the size          better: no pixel
a polygon with an odd number of coordinates            its last is dropped                          better: ValueError
a polygon with NaN, infinity, coordinates from 4e8 on  never returns, or takes all memory           better: ValueError
``counts`` bytes, str                                  taken                                        same
``counts`` a list of runs                              ``frPyObjects`` alone, else TypeError        better: everywhere
``size`` tuple, array, of floats                       cut to integers                              same
``size`` negative, of 2^31 pixels or more              OverflowError; crash                         better: ValueError
a string that ends within a run                        reads on behind its end                      better: ValueError
a string with characters that are none of its own      some mask                                    better: ValueError
runs that are negative                                 huge runs                                    better: ValueError
runs that do not add up to the size                    garbage, no return, crash                    better: ValueError
a code without ``size`` or ``counts``                  KeyError                                     same
=====================================================  ===========================================  ==================

A ValueError about one object of several names its index.
"""

from s2d import _native

__all__ = ["area", "decode", "encode", "frPyObjects", "iou", "merge", "toBbox"]

_rle = _native.host().rle

encode = _rle.encode
decode = _rle.decode
area = _rle.area
toBbox = _rle.toBbox
merge = _rle.merge
iou = _rle.iou
frPyObjects = _rle.frPyObjects
