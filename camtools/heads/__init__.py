"""Heads: what stands between a classifier's last features and its scores; differentiable, for anyone's model.

`replace_head` puts one into a classifier that people already have. The pooling heads (`GAP`, `TAP`, `WGAP`) keep its
linear classifier; `Wildcat`, `ExCAM`, `BAS`, `ACoL`, `SPG` and `TSCAM` bring their own.
"""

from camtools.heads.acol import ACoL
from camtools.heads.bas import BAS
from camtools.heads.box_regressor import BoxRegressor
from camtools.heads.decoder import MapDecoder
from camtools.heads.dropout import ADL, SequentialDropout
from camtools.heads.headed import HeadedModel
from camtools.heads.pooling import GAP, TAP, WGAP, MapHead
from camtools.heads.replace import replace_head
from camtools.heads.saved import load_headed
from camtools.heads.spg import SPG
from camtools.heads.tscam import TSCAM
from camtools.heads.wildcat import ClassWisePool, ExCAM, Wildcat, WildcatPool

__all__ = [
    "ADL",
    "BAS",
    "GAP",
    "SPG",
    "TAP",
    "TSCAM",
    "WGAP",
    "ACoL",
    "BoxRegressor",
    "ClassWisePool",
    "ExCAM",
    "HeadedModel",
    "MapDecoder",
    "MapHead",
    "SequentialDropout",
    "Wildcat",
    "WildcatPool",
    "load_headed",
    "replace_head",
]
